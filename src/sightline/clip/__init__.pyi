from sightline.clip.live import LiveGrids, open_grids
from sightline.clip.params import ClipParams
from sightline.grids.store import GridStore

__all__ = ["ClipParams", "GridStore", "LiveGrids", "open_grids"]
