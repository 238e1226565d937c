"""The `audiolm-lite` command: its jobs exist, start fast, and report errors in one line with a documented status."""

import importlib
import subprocess
import sys
import urllib.error

import pytest

from audiolm_lite import __version__, cli
from audiolm_lite.config.errors import ConfigError, run_command

JOBS = {name: job for group in cli.JOBS.values() for name, job in group.items()}


def command(*arguments):
    """Exit status, standard output and standard error of `python -m audiolm_lite`."""
    done = subprocess.run([sys.executable, "-m", "audiolm_lite", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", JOBS)
def test_every_job_has_a_main_that_helps(name, capsys):
    module = importlib.import_module(JOBS[name].module)
    with pytest.raises(SystemExit) as done:
        module.main(["--help"])
    assert not done.value.code
    assert "usage" in capsys.readouterr().out.lower()


def test_help_lists_all_jobs_and_imports_no_heavy_library():
    code = "import sys\nfrom audiolm_lite import cli\nprint(cli.help_text())\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in JOBS)
    assert command("--help")[1] == done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "out", "error"),
    [
        (["--version"], 0, f"audiolm-lite {__version__}\n", ""),
        (["trian"], 1, "", "error: unknown job 'trian'; did you mean 'train'?"),
        (["train", "missing.yaml"], 1, "", "error: missing.yaml: no such file; give the YAML file of the recipe"),
        (["convert", "whispr", "a", "b"], 2, "", "invalid choice: 'whispr'"),
    ],
)
def test_exit_status_and_message(arguments, status, out, error):
    result = command(*arguments)
    assert result[0] == status and result[1] == out
    assert error in result[2] and "Traceback" not in result[2]


@pytest.mark.parametrize(("result", "status"), [(None, 0), (3, 3), ({"wer": 1.0}, 0), (True, 0)])
def test_the_result_of_main_becomes_the_exit_status(result, status):
    with pytest.raises(SystemExit) as done:
        run_command(lambda argv: result, [])
    assert done.value.code == status


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError("seed is 'x'; write a number"), "error: seed is 'x'; write a number"),
        (
            FileNotFoundError(2, "No such file", "a.yaml"),
            "error: a.yaml: No such file (AUDIOLM_LITE_DEBUG=1 shows where)",
        ),
        (urllib.error.URLError("Name or service\nnot known"), "error: <urlopen error Name or service not known> (AUD"),
        (
            ModuleNotFoundError(name="whisper"),
            "error: the package 'whisper' is not installed; install it with pip (AUD",
        ),
        (KeyboardInterrupt(), "130"),
    ],
)
def test_errors_that_a_user_can_correct_are_one_line(error, message, monkeypatch):
    """Anything else is a fault of the program, whose traceback is wanted, as with --debug."""

    def wrong(argv):
        raise error

    with pytest.raises(SystemExit) as done:
        run_command(wrong, [])
    assert str(done.value).startswith(message)
    with pytest.raises(type(error)):
        run_command(wrong, ["--debug"])
    monkeypatch.setenv("AUDIOLM_LITE_DEBUG", "1")
    with pytest.raises(type(error)):
        run_command(wrong, [])


@pytest.mark.parametrize("error", [ZeroDivisionError(), ModuleNotFoundError(name="audiolm_lite.nothing")])
def test_an_error_of_the_program_keeps_its_traceback(error):
    def wrong(argv):
        raise error

    with pytest.raises(type(error)):
        run_command(wrong, [])


def test_every_job_accepts_debug():
    status, _, error = command("stats", "missing.jsonl", "--debug")
    assert status == 1 and "Traceback" in error and "ManifestError: missing.jsonl" in error
