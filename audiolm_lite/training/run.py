"""The train command: one stage of the curriculum, or several in order. The train.py of a recipe calls `main`."""

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.precision import training_precision
from audiolm_lite.config.start import start_run
from audiolm_lite.distributed import processes
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.build import build_datasets, build_model, require_decoding
from audiolm_lite.training.ctc_start import remove_state
from audiolm_lite.training.handover import is_finished
from audiolm_lite.training.initialization import initialize_adapter
from audiolm_lite.training.stages import stage_commands


def main(argv: list[str]) -> None:
    """Train the stages that a command line names, one after the other."""
    for command in stage_commands(argv):
        train_stage(command)


def train_stage(argv: list[str]) -> AudioLMBrain | None:
    """Train a stage and export its best model.

    Parameters
    ----------
    argv : list of str
        YAML file of the stage and options.

    Returns
    -------
    AudioLMBrain or None
        The Brain after training; None if this stage is already trained with the same settings.
    """
    hparams, run_opts, resolved = load_experiment(argv)
    if device := processes.start_process_group(run_opts.get("device")):
        run_opts["device"] = device
    start_run(hparams, resolved, processes.is_main())
    hparams["precision"] = training_precision(hparams["precision"], run_opts.get("device"))
    if is_finished(hparams, run_opts):
        return None
    model, tokenizer = build_model(hparams)
    datasets = build_datasets(hparams, model, tokenizer)
    require_decoding(model.llm, hparams, int(datasets["valid"].lengths.max()))
    brain = hparams["brain"](model, hparams, run_opts)
    brain.check_validation(datasets["valid"])  # before a CTC start, which may take long
    brain.print_parts()
    brain.load_previous_stage()
    initialize_adapter(brain, datasets, tokenizer)
    brain.fit_stage(datasets["train"], datasets["valid"])
    brain.export(hparams["output_folder"])
    if processes.is_main():
        remove_state(hparams["output_folder"])
    return brain
