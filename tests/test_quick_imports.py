"""AudioLM imports transformers without SciPy's optimisers and torchaudio; both work when they are used."""

import subprocess
import sys

CODE = """
import sys
from audiolm_lite import AudioLM
slow = [name for name in ("scipy.optimize", "torchaudio", "peft", "speechbrain") if name in sys.modules]
assert not slow, slow
from transformers.loss.loss_for_object_detection import linear_sum_assignment
assert linear_sum_assignment([[1.0, 2.0], [2.0, 9.0]])[1].tolist() == [1, 0]
from transformers import audio_utils
assert callable(audio_utils.torchaudio.functional.resample)
import torchaudio
assert torchaudio.__file__ and audio_utils.torchaudio.functional.resample is torchaudio.functional.resample
"""


def test_deferred_packages_are_imported_when_they_are_used():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
