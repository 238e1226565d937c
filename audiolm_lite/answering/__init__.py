"""Commands that answer about recordings of the user: transcribe, ask and describe."""
