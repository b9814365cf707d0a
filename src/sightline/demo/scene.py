"""Geometry of the demo: two 7-joint arms with grippers at a table, random objects and a plate on it, as MJCF text.

Everything is made of boxes, capsules, cylinders and spheres: they are the fastest to cast rays at, and need no mesh
files. Arms have the joint layout of a Franka Panda. Lengths are metres, angles radians; the world frame has its
origin on the table top, x away from the robots, y to their left, z up. A geom's *material* names what it is made of
(``shell``, ``table``, ``box``, ...); how that looks is the renderer's business (`sightline.demo.appearance`).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

SIDES = ("left", "right")
JOINTS_PER_ARM = 7
FINGER_TRAVEL_M = 0.05  # of each of the two fingers
PHYSICS_STEP_S = 0.002
KINDS = ("box", "cylinder", "ball")

BASE_Y_M = {"left": 0.28, "right": -0.28}
BASE_X_M = -0.42
OBJECTS_X_M, OBJECTS_Y_M = (-0.06, 0.18), (-0.215, 0.215)  # where objects may stand
RADIUS_M = {"box": (0.030, 0.039), "cylinder": (0.033, 0.043), "ball": (0.036, 0.042)}
MIN_SPACING_M = 0.135  # between the centres of two objects, or of an object and the plate
PLATE_RADIUS_M, PLATE_TOP_M = 0.06, 0.006  # of the flat part, which a round rim surrounds
RIM_M, RIM_PARTS = 0.005, 12  # radius of the rim's capsules, and their number

MATERIALS = ("table", "floor", "wall", "shell", "dark", "pad", "accent_left", "accent_right", "plate", *KINDS)
HULL_GROUP = 3  # geoms of this group touch but are never seen
CONTACT_FREE = {"contype": 0, "conaffinity": 0}


@dataclass(frozen=True)
class SceneObject:
    """One object on the table, upright."""

    kind: str  # one of KINDS
    x: float  # m
    y: float  # m
    yaw: float  # rad
    radius: float  # m; of a box: the scale of its footprint, 1.25 radius by 0.85 radius (half lengths)
    half_height: float  # m


@dataclass(frozen=True)
class Scene:
    """What lies on the table: objects, of which the first is the only ball, and a plate on the ball's side."""

    objects: tuple[SceneObject, ...]
    plate: tuple[float, float]  # m, its centre (x, y)

    @property
    def side(self) -> str:
        """The arm that is nearer to the ball, and to the plate."""
        return "left" if self.objects[0].y > 0 else "right"


def draw_scene(rng: np.random.Generator) -> Scene:
    """A ball, a box, a cylinder, up to two more of the last two, and a plate: well apart, and all can be grasped."""
    others = ["box", "cylinder", *map(str, rng.choice(["box", "cylinder"], int(rng.integers(0, 3))))]
    plate, *places = _draw_places(rng, len(others) + 2)
    objects = []
    for kind, (x, y) in zip(["ball", *others], places, strict=True):
        radius = float(rng.uniform(*RADIUS_M[kind]))
        half_height = float(rng.uniform(0.032, 0.056)) if kind != "ball" else radius
        objects.append(SceneObject(kind, x, y, float(rng.uniform(-0.7, 0.7)), radius, half_height))
    return Scene(tuple(objects), plate)


def _draw_places(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Positions (x, y) on the table, none nearer to another than `MIN_SPACING_M`; the first two are on one side."""
    places: list[tuple[float, float]] = []
    while len(places) < count:
        places = []  # the first few may have left no room for the last: start again
        for _ in range(50):
            x, y = float(rng.uniform(*OBJECTS_X_M)), float(rng.uniform(*OBJECTS_Y_M))
            other_side = len(places) == 1 and y * places[0][1] <= 0
            apart = all(math.sqrt((x - a) ** 2 + (y - b) ** 2) > MIN_SPACING_M for a, b in places)
            if len(places) < count and apart and not other_side:
                places.append((x, y))
    return places


def scene_xml(scene: Scene) -> str:
    """MJCF text of table, arms, plate and objects; the body of object i is called ``object<i>``.

    In ``qpos``, the nine joints of the left arm (seven and two fingers) come first, then the right arm's, then seven
    numbers per object (position, quaternion w x y z).
    """
    root = Element("mujoco")
    _add(root, "compiler", angle="radian")
    _add(root, "option", timestep=PHYSICS_STEP_S, integrator="implicitfast", cone="elliptic", impratio=5)
    _add_defaults(_add(root, "default"))
    assets = _add(root, "asset")
    for material in MATERIALS:
        _add(assets, "material", name=material)
    world = _add(root, "worldbody")
    _add(world, "geom", material="floor", type="plane", size=(4, 4, 0.1), pos=(0, 0, -0.75), **CONTACT_FREE)
    _add(
        world, "geom", material="wall", type="plane", size=(4, 4, 0.1), pos=(-1.5, 0, 0), quat=(1, 0, 1, 0),
        **CONTACT_FREE,
    )  # fmt: skip
    _add(
        world, "geom", material="table", type="box", size=(0.55, 0.75, 0.02), pos=(0.03, 0, -0.02),
        contype=2, conaffinity=2, friction=(1, 0.02, 0.002),
    )  # fmt: skip
    _add_plate(world, *scene.plate)
    for side in SIDES:
        _add_arm(world, side)
    for index, thing in enumerate(scene.objects):
        _add_object(world, index, thing)
    equality, actuators = _add(root, "equality"), _add(root, "actuator")
    for side in SIDES:
        _add_drives(equality, actuators, side)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def _add(parent: Element, tag: str, **attributes: object) -> Element:
    """Append ``<tag ...>``; tuples become space-separated, and ``class_`` stands for the reserved word."""

    def text(value: object) -> str:
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return SubElement(parent, tag, {name.rstrip("_"): text(value) for name, value in attributes.items()})


def _add_defaults(parent: Element) -> None:
    """Contact rules: robots touch objects (never each other), objects touch objects and the table."""
    rules_of: dict[str, dict[str, object]] = {
        "robot": {"contype": 1, "conaffinity": 2, "density": 600},
        "pad": {"contype": 1, "conaffinity": 2, "density": 600, "friction": (1.5, 0.02, 0.002), "solref": (0.01, 1)},
        "object": {"contype": 2, "conaffinity": 3, "density": 350, "friction": (1.1, 0.02, 0.003), "condim": 6},
    }
    for name, rules in rules_of.items():
        _add(_add(parent, "default", class_=name), "geom", **rules)


# ---------------------------------------------------------------------------------------------------------- robots

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Link:
    """A link of the arm: its joint turns about its own z axis."""

    pos: Point  # m, in the frame of the link before
    quat: tuple[float, float, float, float]
    limits: tuple[float, float]  # rad
    capsules: tuple[tuple[Point, Point, float, str], ...]  # from, to, radius (m), material


UPRIGHT, ROLL, ROLL_BACK = (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (1.0, -1.0, 0.0, 0.0)
LINKS = (
    Link((0, 0, 0.333), UPRIGHT, (-2.9, 2.9), (((0, 0, -0.1), (0, 0, 0), 0.06, "shell"),)),
    Link(
        (0, 0, 0), ROLL_BACK, (-1.76, 1.76),
        (((0, 0, -0.06), (0, 0, 0.06), 0.06, "accent"), ((0, 0, 0), (0, -0.12, 0), 0.06, "shell")),
    ),
    Link(
        (0, -0.316, 0), ROLL, (-2.9, 2.9),
        (((0, 0, -0.18), (0, 0, -0.07), 0.055, "shell"), ((0, 0, -0.07), (0.0825, 0, 0), 0.05, "shell")),
    ),
    Link(
        (0.0825, 0, 0), ROLL, (-3.07, -0.07),
        (((0, 0, -0.05), (0, 0, 0.05), 0.055, "accent"), ((0, 0, 0), (-0.0825, 0.1, 0), 0.05, "shell")),
    ),
    Link(
        (-0.0825, 0.384, 0), ROLL_BACK, (-2.9, 2.9),
        (((0, 0, -0.26), (0, 0, -0.07), 0.05, "shell"), ((0, 0.05, -0.17), (0, 0.06, -0.04), 0.03, "shell")),
    ),
    Link(
        (0, 0, 0), ROLL, (-0.02, 3.75),
        (((0, 0, -0.05), (0, 0, 0.05), 0.048, "accent"), ((0, 0, 0), (0.088, 0, 0), 0.045, "shell")),
    ),
    Link((0.088, 0, 0), ROLL, (-2.9, 2.9), (((0, 0, 0.03), (0, 0, 0.085), 0.042, "dark"),)),
)  # fmt: skip


def _add_arm(world: Element, side: str) -> None:
    base = _add(world, "body", name=f"{side}_base", pos=(BASE_X_M, BASE_Y_M[side], 0), gravcomp=1)
    _add(base, "geom", class_="robot", material="dark", type="cylinder", size=(0.075, 0.03), pos=(0, 0, 0.03))
    _add_capsule(base, (0, 0, 0.05), (0, 0, 0.22), 0.062, "shell")
    body = base
    for number, link in enumerate(LINKS, start=1):
        body = _add(body, "body", pos=link.pos, quat=link.quat, gravcomp=1)
        _add(body, "joint", name=f"{side}_joint_{number}", axis=(0, 0, 1), range=link.limits, damping=8, armature=0.1)
        for start, end, radius, material in link.capsules:
            _add_capsule(body, start, end, radius, f"accent_{side}" if material == "accent" else material)
    _add_hand(body, side)


def _add_capsule(body: Element, start: Point, end: Point, radius: float, material: str) -> None:
    _add(body, "geom", class_="robot", material=material, type="capsule", fromto=(*start, *end), size=radius)


def _add_hand(wrist: Element, side: str) -> None:
    """Hand, camera housing, and two fingers that slide along the hand's y axis; the hand's z axis points forward."""
    hand = _add(wrist, "body", name=f"{side}_hand", pos=(0, 0, 0.107), quat=(0.9238795, 0, 0, -0.3826834), gravcomp=1)
    _add(hand, "site", name=f"{side}_tcp", pos=(0, 0, 0.1034))  # tool centre point: between the finger tips
    for material, size, pos in (
        ("shell", (0.028, 0.105, 0.026), (0.0, 0.0, 0.03)),
        ("dark", (0.018, 0.03, 0.011), (0.046, 0.0, -0.008)),
    ):
        _add(hand, "geom", class_="robot", material=material, type="box", size=size, pos=pos)
    for number, quat in ((1, UPRIGHT), (2, (0, 0, 0, 1))):  # the second finger mirrors the first
        finger = _add(hand, "body", pos=(0, 0, 0.0584), quat=quat, gravcomp=1)
        _add(
            finger, "joint", name=f"{side}_finger_{number}", type="slide", axis=(0, 1, 0),
            range=(0, FINGER_TRAVEL_M), damping=12, armature=0.3,
        )  # fmt: skip
        for class_, material, size, pos in (
            ("robot", "dark", (0.009, 0.006, 0.022), (0.0, 0.012, 0.022)),
            ("pad", "pad", (0.0085, 0.004, 0.010), (0.0, 0.004, 0.044)),
        ):
            _add(finger, "geom", class_=class_, material=material, type="box", size=size, pos=pos)


def _add_drives(equality: Element, actuators: Element, side: str) -> None:
    """Position servos: seven joints, then the first finger, to which the second is coupled."""
    _add(equality, "joint", joint1=f"{side}_finger_1", joint2=f"{side}_finger_2", solref=(0.005, 1))
    for number in range(1, JOINTS_PER_ARM + 1):
        gain, force = (900, 87) if number < 5 else (500, 30)  # N m / rad, N m
        _add(actuators, "position", joint=f"{side}_joint_{number}", kp=gain, dampratio=1, forcerange=(-force, force))
    _add(actuators, "position", joint=f"{side}_finger_1", kp=700, kv=40, forcerange=(-35, 35))


# --------------------------------------------------------------------------------------------------------- objects


def _add_plate(world: Element, x: float, y: float) -> None:
    """A flat disc, fixed to the table, which only the ball touches, and a rim of capsules, which stops everything."""
    _add(
        world, "geom", material="plate", type="cylinder", size=(PLATE_RADIUS_M, PLATE_TOP_M / 2),
        pos=(x, y, PLATE_TOP_M / 2), contype=4, conaffinity=4, friction=(1, 0.02, 0.002),
    )  # fmt: skip
    corners = []
    for part in range(RIM_PARTS + 1):
        angle = 2 * math.pi * (part % RIM_PARTS) / RIM_PARTS
        corners.append((round(x + PLATE_RADIUS_M * math.cos(angle), 7), round(y + PLATE_RADIUS_M * math.sin(angle), 7)))
    for start, end in pairwise(corners):
        _add(
            world, "geom", material="plate", type="capsule", fromto=(*start, PLATE_TOP_M, *end, PLATE_TOP_M),
            size=RIM_M, contype=2, conaffinity=2,
        )  # fmt: skip


def _add_object(world: Element, index: int, thing: SceneObject) -> None:
    radius, half_height = thing.radius, thing.half_height
    pos, euler = (thing.x, thing.y, half_height + 0.001), (0, 0, thing.yaw)
    body = _add(world, "body", name=f"object{index}", pos=pos, euler=euler)
    _add(body, "freejoint")
    if thing.kind == "box":
        footprint = (radius * 1.25, radius * 0.85)
        _add(body, "geom", class_="object", material="box", type="box", size=(*footprint, half_height))
    elif thing.kind == "ball":
        touches_plate = {"contype": 2 + 4, "conaffinity": 3 + 4}
        _add(body, "geom", class_="object", material="ball", type="sphere", size=radius, **touches_plate)
    else:
        size = (radius, half_height)
        _add(body, "geom", class_="object", material="cylinder", type="cylinder", size=size, **CONTACT_FREE)
        # It touches through four invisible boxes, an octagon: contacts of boxes are analytic, while the iterative
        # contact of a cylinder magnifies last-bit differences between machines into other trajectories.
        slab = (0.924 * radius, 0.383 * radius, half_height)
        for quarter in range(4):
            turn = (0, 0, math.pi / 4 * quarter)
            _add(body, "geom", class_="object", type="box", mass=0, group=HULL_GROUP, size=slab, euler=turn)
