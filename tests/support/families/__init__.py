"""A tiny model of every kind, with the layers that are expected in it."""

from tests.support.families.case import Case, build, expected, template
from tests.support.families.decoders import DECODERS
from tests.support.families.encoder_decoders import ENCODER_DECODERS
from tests.support.families.encoders import ENCODERS
from tests.support.families.vision_and_speech import VISION_AND_SPEECH

CASES = [*ENCODERS, *DECODERS, *ENCODER_DECODERS, *VISION_AND_SPEECH]

__all__ = ["CASES", "Case", "build", "expected", "template"]
