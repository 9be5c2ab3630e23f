"""What the decoders that stand in for a model have in common: bytes are tokens, and 0 ends."""

from collections.abc import Sequence

from adapters.prompting import Message
from deployments.engine.decoder import DecoderInfo


class StandInDecoder:
    """A group decoder without `generate`.

    Args:
        device: what it says of itself.
    """

    def __init__(self, device: str) -> None:
        self._device = device

    @property
    def info(self) -> DecoderInfo:
        return DecoderInfo(
            "stand-in", "test", self._device, "none", None, frozenset({0}), frozenset()
        )

    def set_adapter(self, name: str | None) -> None:
        assert name is None

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode()


def encode(turns: Sequence[Message], answer_language: str | None) -> list[int]:
    return [1, 2, 3]
