"""Wordings of questions and answers about real corpora.

`VARIED` is for pretrained language models; `MINIASQA` has the few wordings that MiniASQA's shipped language model was
trained on. Each maps a task to (question, answer) pairs, in which {label} stands for the requested value. The question
determines the form of its answer, so that free-text answers can be learnt and scored.
"""

from data_prep.miniasqa import questions as miniasqa

Forms = list[tuple[str, str]]

_ASR = [
    "What does the speaker say?",
    "Transcribe the speech.",
    "Please write down what is said.",
    "Give the transcript of this recording.",
    "What are the words spoken in the clip?",
    "Convert the speech to text.",
    "Listen and type out every word.",
    "What is being said here?",
    "Put the spoken words into writing.",
    "Can you transcribe this audio for me?",
    "Repeat in writing what you hear somebody say.",
    "Take dictation of the speech.",
]
_ASR_KOREAN = [
    "말한 내용을 받아 적으세요.",
    "이 음성을 글로 옮겨 주세요.",
    "화자가 뭐라고 말하나요?",
    "음성을 텍스트로 바꿔 주세요.",
    "들리는 말을 그대로 쓰세요.",
    "이 녹음에서 무슨 말을 하고 있나요?",
]
_CAPTION = [
    "Describe the audio.",
    "What can be heard?",
    "Write a caption for this clip.",
    "Describe this recording in one sentence.",
    "What is going on in the audio?",
    "Tell someone who cannot hear it what this clip sounds like.",
    "Sum up the sounds of the recording.",
    "How would you describe what you hear?",
    "Give a short description of the sound scene.",
    "What is happening, judging by the sound?",
    "Put this recording into words.",
    "Please caption the audio.",
]
_SOUND = [
    ("Which sound is this?", "{label}"),
    ("Name the sound.", "{label}"),
    ("What kind of sound is it?", "This is the sound of {label}."),
    ("Classify the sound in this clip.", "The sound is {label}."),
    ("What do you hear?", "I hear {label}."),
    ("Which class does the sound belong to?", "{label}"),
    ("What is making the sound?", "It sounds like {label}."),
    ("Give the label of this sound.", "Label: {label}"),
    ("How would you tag this recording?", "{label}"),
    ("What is the main sound of the clip?", "The main sound is {label}."),
]
_SOUNDS = [
    ("Which sounds can be heard?", "{label}"),
    ("List all sounds in the clip.", "{label}"),
    ("Tag the audio with everything that is heard.", "Tags: {label}"),
    ("What are the sound events of this recording?", "The sound events are {label}."),
    ("Name every sound you notice.", "I notice {label}."),
    ("Which labels describe this audio?", "{label}"),
    ("What does the recording contain?", "It contains {label}."),
    ("Which sound classes are present?", "Present are {label}."),
]
_GENDER = [
    ("Is the speaker male or female?", "The speaker is {label}."),
    ("What is the gender of the speaker?", "{label}"),
    ("Whose voice is it, male or female?", "It is a {label} voice."),
    ("Name the gender of the voice.", "{label}"),
    ("Would you say that this voice is male or female?", "I would say that it is {label}."),
    ("Judge the speaker's gender by the voice.", "The voice sounds {label}."),
    ("Classify the speaker by gender.", "Gender: {label}"),
    ("Which gender does the voice suggest?", "The voice suggests a {label} speaker."),
]
_AGE = [
    ("How old is the speaker?", "About {label} years old."),
    ("Guess the age of the voice.", "{label}"),
    ("What is the age of the speaker?", "The speaker is about {label}."),
    ("Give the age of the speaker in years.", "{label}"),
    ("Estimate how old the person speaking is.", "I estimate {label} years."),
    ("How many years old does the speaker sound?", "The speaker sounds {label} years old."),
    ("What age would you give this voice?", "I would give it {label} years."),
    ("State the speaker's likely age.", "Age: {label}"),
]
_EMOTION = [
    ("How does the speaker sound?", "The speaker sounds {label}."),
    ("Which emotion is in the voice?", "{label}"),
    ("In which mood is the speaker?", "{label}"),
    ("What is the emotion of the speaker?", "The emotion is {label}."),
    ("How does this person feel?", "The person feels {label}."),
    ("Name the feeling that the voice carries.", "{label}"),
    ("Classify the emotion of the speech.", "Emotion: {label}"),
    ("What does the tone of voice tell about the speaker's emotion?", "It tells of this emotion: {label}."),
]
_SENTIMENT = [
    ("Is what the speaker says positive, neutral or negative?", "It is {label}."),
    ("What is the sentiment of the speech?", "{label}"),
    ("Classify the opinion that is expressed.", "Sentiment: {label}"),
    ("Does the speaker think well or badly of the matter?", "The attitude is {label}."),
    ("Judge the attitude of the speaker.", "The speaker's attitude is {label}."),
    ("Which sentiment do words and voice express?", "They express a {label} sentiment."),
]
_GENRE = [
    ("Which genre of music is this?", "{label}"),
    ("Name the genre.", "{label}"),
    ("What kind of music is playing?", "This is {label} music."),
    ("Classify the piece by genre.", "Genre: {label}"),
    ("In which section of a record shop would you look for this?", "Under {label}."),
    ("What style of music do you hear?", "I hear {label}."),
]
_FIRST_SOUND = [
    ("Which sound comes first?", "{label}"),
    ("What is heard at the very beginning?", "At the beginning there is {label}."),
    ("With which sound does the clip start?", "It starts with {label}."),
    ("Name the earliest sound.", "{label}"),
]
# {sound} stands for the sound in question.
_EVENT_TIME = [
    ("When is {sound} heard?", "{label}"),
    ("At what times does {sound} occur?", "It occurs at {label}."),
    ("Give the start and the end of {sound} in seconds.", "{label}"),
    ("Find {sound} in the recording.", "It is heard at {label}."),
    ("Mark the stretches with {sound}.", "{label}"),
]
_TIMELINE = [
    ("List the sounds with their times.", "{label}"),
    ("Which sound is heard when?", "{label}"),
    ("Write a timeline of the recording.", "{label}"),
    ("Give all sound events in order, with start and end in seconds.", "{label}"),
]
_ORDER = [
    "What does the customer order?",
    "List the order.",
    "Write down the drink and everything that goes with it.",
    "What should the barista make?",
    "Fill in the order form.",
    "Which drink is ordered, and how?",
    "Take this order.",
    "Give the order as a list of names and values.",
]
# Questions about the words of a transcript; {word} is a word, {place} its number ("second").
TRANSCRIPT_QUESTIONS = {
    "word_said": [
        'Is the word "{word}" said?',
        'Does the speaker say "{word}"?',
        'Can you hear the word "{word}"?',
        'Does "{word}" occur in what is said?',
    ],
    "word_count": [
        "How many words are said?",
        "Count the words.",
        "How many words does the speaker say?",
        "What is the number of spoken words?",
    ],
    "word_place": [
        "What is the {place} word?",
        "Which word is the {place} one?",
        "Give the {place} word that is said.",
        "Say only the {place} word.",
    ],
    "spelling": [
        "Spell the {place} word letter by letter.",
        "How is the {place} word spelled?",
        "Write the letters of the {place} word one by one.",
        "Spell out the {place} word.",
    ],
}


def _with_plain_answers(questions: list[str]) -> Forms:
    return [(question, "{label}") for question in questions]


# Tasks that MiniASQA does not have.
_COMMON: dict[str, Forms] = {
    "sounds": _SOUNDS,
    "sentiment": _SENTIMENT,
    "genre": _GENRE,
    "first_sound": _FIRST_SOUND,
    "event_time": _EVENT_TIME,
    "timeline": _TIMELINE,
    "order": _with_plain_answers(_ORDER),
}


MINIASQA: dict[str, Forms] = {
    **_COMMON,
    "asr": _with_plain_answers(miniasqa.ASR),
    "no_speech": _with_plain_answers(miniasqa.ASR),
    "caption": _with_plain_answers(miniasqa.CAPTION),
    "sound_class": miniasqa.SOUND,
    "gender": miniasqa.GENDER,
    "age": miniasqa.AGE,
    "emotion": miniasqa.EMOTION,
}
VARIED: dict[str, Forms] = {
    **_COMMON,
    "asr": _with_plain_answers(_ASR),
    "no_speech": _with_plain_answers(_ASR),
    "asr ko": _with_plain_answers(_ASR_KOREAN),
    "caption": _with_plain_answers(_CAPTION),
    "sound_class": _SOUND,
    "gender": _GENDER,
    "age": _AGE,
    "emotion": _EMOTION,
}
WORDINGS = {"miniasqa": MINIASQA, "varied": VARIED}
