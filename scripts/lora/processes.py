"""The processes of one training run, as `accelerate launch` and `torchrun` start them."""

import os

import torch
from accelerate import PartialState

from scripts.lora.errors import TrainingError


class Processes:
    """This process among those of its run, one for each GPU; alone if nobody launched others.

    Raises:
        TrainingError: more processes than GPUs.
    """

    def __init__(self, device: str) -> None:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device == "cuda":
            if local >= torch.cuda.device_count():
                raise TrainingError(
                    f"process {local + 1} of this machine has no GPU: there are "
                    f"{torch.cuda.device_count()}; launch with --num_processes "
                    f"{torch.cuda.device_count()}"
                )
            torch.cuda.set_device(local)  # the GPU that "cuda" means from here on
        self._state = PartialState(cpu=device == "cpu")

    @property
    def count(self) -> int:
        return int(self._state.num_processes)

    @property
    def is_main(self) -> bool:
        """Return whether this one writes files and reports."""
        return bool(self._state.is_main_process)

    def wait(self) -> None:
        """Wait until every process is here."""
        self._state.wait_for_everyone()

    def end(self) -> None:
        """End the connections between the processes."""
        if self.count > 1:
            self._state.destroy_process_group()
