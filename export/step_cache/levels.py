"""The levels of the step cache: each is a quality, the least PSNR (dB) of a picture against the one of full steps.

Chosen from the curve in docs/step-caching.md.
"""

from collections.abc import Mapping

LEVELS: Mapping[str, float] = {"slight": 35.0, "medium": 30.0, "strong": 25.0}
# A list of calls is kept only if it holds with this to spare: other machines round otherwise, and `verify` measures
# again.
MARGIN_DB = 1.0
