"""Engines of the training loop: torch in one process, DDP and FSDP2, and DeepSpeed's ZeRO-2 and ZeRO-3."""
