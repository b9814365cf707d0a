"""Grid features, of CLIP or of timm's networks: extracted once into HDF5 files, which every training after it reads."""

from typing import TYPE_CHECKING

from sightline.core.lazy import lazy_names

if TYPE_CHECKING:
    from sightline.clip.live import LiveGrids as LiveGrids
    from sightline.clip.live import open_grids as open_grids
    from sightline.clip.params import GridParams as GridParams
    from sightline.grids.store import GridStore as GridStore
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
