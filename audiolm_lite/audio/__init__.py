"""Reading audio files: `reading.read_audio` returns the samples of a file or a segment, mono, at 16 kHz.

How a file is read, and the module of each step:

    path -> bytes of a tar member, if the path leads into a tar file        tar_members
         -> checked and opened with libsndfile (lengths of MP3 files)       opening, mp3
         -> or with FFmpeg's libraries, where libsndfile has no decoder     containers
         -> blocks of the segment -> one channel -> 16 kHz                  reading, channels

`inputs` makes sources of other forms than paths (`download`: of URLs; `samples`: of arrays), `asked` takes those of a
call of `AudioLM`. `windows` divides recordings of any length.

Every fault is an `errors.AudioError`. `long_audio` divides clips that are longer than an encoder accepts.
"""
