"""The progress bar of an extraction."""

from tqdm import tqdm

from audiolm_lite.distributed.processes import local_rank
from audiolm_lite.features.clip_batches import DecodedBatches


class ExtractionProgress:
    """A bar over the seconds of audio to encode, since clips differ in length: clips/s, audio-hours/hour, time left.

    Parameters
    ----------
    batches : DecodedBatches
        All batches to extract.
    """

    def __init__(self, batches: DecodedBatches):
        self.plans, self.todo = batches.plans, batches.todo
        self.clips, self.seconds = 0, 0.0
        self.total = sum(len(self.todo.intersection(keys)) for keys in batches.batches)
        self.bar = tqdm(
            total=sum(self._cost(keys) for keys in batches.batches),
            bar_format="features: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            disable=local_rank() > 0,
        )

    def __enter__(self) -> "ExtractionProgress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, keys: list[str]) -> None:
        """Count a batch as encoded."""
        self.clips += len(self.todo.intersection(keys))
        self.seconds += sum(self.plans[key].seconds for key in keys)
        elapsed = self.bar.format_dict["elapsed"] or 1e-9
        rates = f"{self.clips / elapsed:.3g} clips/s, {self.seconds / elapsed:.3g} audio-hours/hour"
        self.bar.set_postfix_str(f"{self.clips}/{self.total} clips, {rates}", refresh=False)
        self.bar.update(self._cost(keys))

    def _cost(self, keys: list[str]) -> float:
        return sum(self.plans[key].chunks * self.plans[key].chunk_seconds for key in keys)
