"""Where everything in a picture of a net stands, in inches: layers become boxes, residual entries arcs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flexvae_cli.api.spec import LayerSpec
from flexvae_cli.api.trace import Shape, Step
from flexvae_cli.errors import UsageError
from flexvae_cli.inspection import Inspection, Line

TALL = 1.2  # inches, the highest box
SLANT = (0.2, 0.15)  # inches to the right and up, the depth of the deepest box
GAP = 0.075  # inches between boxes
ROOM = 0.1  # inches more behind each end of a residual entry
END = 0.78  # inches on either side for the shapes that go in and come out
LINE = 0.13  # inches from one line of text to the next
MOST_BOXES = 300


@dataclass(frozen=True, slots=True)
class Block:
    """One box: a layer, or equal layers in a row."""

    line: Line
    count: int = 1

    @property
    def same(self) -> tuple[object, ...]:
        """What makes two blocks equal."""
        return self.line.code, self.line.takes, self.line.gives

    @property
    def label(self) -> str:
        return f"{self.count}× {self.line.code}" if self.count > 1 else self.line.code

    @property
    def role(self) -> str:
        return role(self.line)

    @property
    def width(self) -> float:
        """Inches: the logarithm of the channels, and more for each repeat; layers without products are thin plates."""
        if self.role in ("normalisation", "activation"):
            return 0.05
        return (0.03 + 0.017 * math.log2(1 + self.line.gives[0])) * (1 + 0.35 * min(self.count - 1, 5))


@dataclass(frozen=True, slots=True)
class Group:
    """A residual entry, or equal ones in a row: its body's boxes, and the codes on its shortcut."""

    body: tuple[Block | Group, ...]
    shortcut: tuple[str, ...]
    count: int = 1

    @property
    def same(self) -> tuple[object, ...]:
        return self.shortcut, *((each.same, each.count) for each in self.body)

    @property
    def label(self) -> str:
        return " ".join(([f"{self.count}×"] if self.count > 1 else []) + list(self.shortcut))


@dataclass(frozen=True, slots=True)
class Box:
    """A block and where it stands: left end and height of its front in inches, and the depth's two components."""

    block: Block
    part: str
    x: float
    height: float
    slant: tuple[float, float]

    @property
    def right(self) -> float:
        return self.x + self.block.width

    @property
    def middle(self) -> float:
        return (self.x + self.right) / 2


@dataclass(frozen=True, slots=True)
class Arc:
    """A shortcut: where it leaves and where it joins, in inches, and how many others it passes over."""

    start: float
    end: float
    level: int
    label: str


@dataclass
class Scene:
    """Boxes and arcs as they are placed from left to right."""

    largest: int
    x: float = END
    part: str = ""
    boxes: list[Box] = field(default_factory=list)
    arcs: list[Arc] = field(default_factory=list)

    def place(self, elements: Sequence[Block | Group]) -> int:
        """Place elements; returns how many arcs lie over each other in them."""
        return max((self.block(e) if isinstance(e, Block) else self.group(e) for e in elements), default=0)

    def block(self, block: Block) -> int:
        height, slant = extent(block.line.gives, self.largest)
        before = self.boxes[-1] if self.boxes else None
        if before and (before.part != self.part or before.block.line.gives[1:] != block.line.gives[1:]):
            self.x += 0.09
        self.boxes.append(Box(block, self.part, self.x, height, slant))
        self.x += block.width + GAP + 0.5 * slant[0]
        return 0

    def group(self, group: Group) -> int:
        start = self.clear()
        level = self.place(group.body) + 1
        end = self.clear()
        self.arcs.append(Arc(start, end, level, group.label))
        return level

    def clear(self) -> float:
        """Make room for the end of an arc, clear of the last box's side; returns where it stands."""
        if self.boxes:
            last = self.boxes[-1]
            self.x = max(self.x + 0.5 * last.slant[0], last.right + last.slant[0] + 0.07)
        at = self.x
        self.x += ROOM
        return at


def scene_of(found: Inspection) -> Scene:
    """Everything placed, with more room where the resolution changes."""
    shapes = [found.shape, *(line.gives for part in found.parts for line in part.lines)]
    scene = Scene(max(max(shape[1:]) for shape in shapes))
    for part in found.parts:
        scene.part = part.name
        scene.place(elements(part.lines))
    if len(scene.boxes) > MOST_BOXES:
        raise UsageError(f"a picture of {len(scene.boxes):,} boxes; the most is {MOST_BOXES}")
    return scene


def extent(shape: Shape, largest: int) -> tuple[float, tuple[float, float]]:
    """Height, and depth to the right and up: the square root keeps small sizes visible. 1-D data has a thin depth."""
    space = shape[1:]
    tall, deep = math.sqrt(space[-2 if len(space) > 1 else 0] / largest), math.sqrt(space[-1] / largest)
    deep = deep if len(space) > 1 else 0.15
    return max(0.06, TALL * tall), (SLANT[0] * deep, SLANT[1] * deep)


def arc_height(arc: Arc, scene: Scene) -> float:
    """Above the boxes that the arc passes over, and above the arcs inside it."""
    below = [box.height / 2 + box.slant[1] for box in scene.boxes if arc.start < box.middle < arc.end]
    inside = [a for a in scene.arcs if arc.start <= a.start and a.end <= arc.end and a.level < arc.level]
    over = [arc_height(a, scene) + (LINE if a.label else 0) for a in inside]
    return max([*below, *over]) + 0.08


def elements(lines: Sequence[Line]) -> tuple[Block | Group, ...]:
    """The lines as boxes and residual groups, equal ones in a row as one with a count."""
    found: list[Block | Group] = []
    index = 0
    while index < len(lines):
        line, inner = lines[index], _inside(lines, index)
        element: Block | Group = Block(line) if line.row else _group(line.key, inner)
        if found and found[-1].same == element.same:
            element = replace(element, count=found.pop().count + 1)
        found.append(element)
        index += 1 + len(inner)
    return tuple(found)


def _inside(lines: Sequence[Line], index: int) -> Sequence[Line]:
    """The lines of the residual entry at `index`; they follow it."""
    end = index + 1
    while end < len(lines) and lines[end].key.startswith(f"{lines[index].key}."):
        end += 1
    return lines[index + 1 : end]


def _group(key: str, lines: Sequence[Line]) -> Group:
    body = [line for line in lines if line.key.startswith(f"{key}.body.")]
    shortcut = [line.code for line in lines if not line.key.startswith(f"{key}.body.") and line.row]
    return Group(elements(body), tuple(shortcut))


def role(line: Line) -> str:
    """What a layer does, told by its effect on shape, parameters and reach, so that any plugin's layers have one."""
    spec = line.row.bound.spec if line.row else None
    if not isinstance(spec, LayerSpec) or line.row is None:
        return "other"
    if spec.kind == "bottleneck":
        return "bottleneck"
    if line.takes[1:] != line.gives[1:]:
        return "upsampling" if math.prod(line.gives[1:]) > math.prod(line.takes[1:]) else "downsampling"
    rule = spec.rule(line.row.bound.values)
    return _role(rule(line.takes)) if rule else "other"


def _role(step: Step) -> str:
    if step.reach.everywhere:
        return "attention"
    if step.macs:
        return "block" if step.reach.statistics else "convolution"
    return "normalisation" if step.parameters or step.reach.statistics else "activation"
