"""Occluders drawn on aligned faces, each with the exact mask of what it leaves visible.

Two styles keep tuning and judging apart: what is trained on style "a" is judged on style "b". They share no
family of texture and no outline. Occluders that were cut out of photographs (`harvested`) are divided by their photographs instead:

| kind | style "a" | style "b" |
| --- | --- | --- |
| niqab | plain dark weave, rounded eye slit | patterned or twill, angular slit, trimmed hem or a cord |
| mask | pleated medical and rounded cloth, ear loops | folded, duckbill and printed, head straps, valves |
| sunglasses | round and softly squared dark lenses | teardrop, angular, one-piece, mirrored |
| scarf | plain or ribbed knit with a soft edge | striped, checked or printed, in straight layers |
| hand | bare, fingers together | spread or bent fingers, back of the hand with nails, cuff or glove |
| patch | ellipses and rectangles, plain or noisy | irregular polygons, patterned |
"""

from oaml.occluders.api import KINDS as KINDS
from oaml.occluders.api import Occluder as Occluder
from oaml.occluders.api import occlude as occlude
from oaml.occluders.api import occluder_rng as occluder_rng
from oaml.occluders.canvas import STYLES as STYLES
from oaml.occluders.canvas import Occluded as Occluded
from oaml.occluders.canvas import Style as Style
from oaml.occluders.harvested import HARVESTED as HARVESTED
from oaml.occluders.harvested import Harvested as Harvested
from oaml.occluders.harvested import load_harvested as load_harvested
from oaml.occluders.material import retexture as retexture
from oaml.occluders.pictures import load_mask_pictures as load_mask_pictures
