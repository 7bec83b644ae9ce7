"""Loading a file's weights into a model: by name, by timm's conversion, or by order and shape."""

import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor, nn

from xray_lightning.errors import UserError, printable
from xray_lightning.models.weights_file import TORCHXRAYVISION, Weights
from xray_lightning.terminal import counted

LEAST_SHARE = 0.9  # of the backbone's values that a file must provide
MOST_NAMED = 3  # keys that a message names; it counts the others

# torchvision's DenseNet files still say "norm.1" where its modules say "norm1"
# (torchvision/models/densenet.py, _load_state_dict).
_OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)$")
_COUNTER = ".num_batches_tracked"  # of batch norms; files from before PyTorch 0.4.1 have none
# torchxrayvision's pixels range from -1024 to 1024: data.normalize=symmetric times this factor.
TORCHXRAYVISION_SCALE = 1024.0


@dataclass(frozen=True)
class TakenOver:
    """What was loaded into a model from files, counted in tensors and in values.

    Attributes:
        how: how names were matched.
        fits, left, new: (tensors, values) that were loaded; that the files have and were not used;
            that the model has and were not loaded.
        left_first, new_first: the first few names of `left` and `new`.
        findings: those whose rows of the last layer were loaded.
        seen: as in `Weights`.
        trained_on: data set and split's SHA-256 of each file that is a checkpoint of this project.
        normalize: the only `data.normalize` that suits the weights; None for any.
    """

    source: str
    how: str
    fits: tuple[int, int]
    left: tuple[int, int]
    new: tuple[int, int]
    left_first: tuple[str, ...] = ()
    new_first: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    trained_on: tuple[tuple[str, str | None], ...] = ()
    normalize: str | None = None

    @property
    def all_seen(self) -> tuple[str, ...]:
        """`seen`, and the data sets of checkpoints of this project."""
        return tuple(dict.fromkeys((*self.seen, *(data for data, _ in self.trained_on))))


def take_over(
    model: nn.Module,
    *files: Weights,
    head: str,
    findings: Sequence[str] | None = None,
) -> TakenOver:
    """Load the weights of files into a model, as far as they fit.

    Tensors are matched by name (a wrapper's prefix is ignored), by name after timm's conversion of
    other projects' files, or by order if their kinds and shapes agree one by one; the way that
    matches most is taken. A model that wraps networks has `inner_prefixes`: each one's prefix.

    Args:
        files: one for the whole model, or one for each of its networks.
        head: prefix of the last part of the model, whose outputs are the findings.
        findings: the model's, to load their rows from a head that has other findings, too.

    Raises:
        UserError: a file holds less than `LEAST_SHARE` of the values below the head, or there
            are not as many files as networks.
    """
    own = model.state_dict()
    trunk = {key: tensor for key, tensor in own.items() if not key.startswith(head)}
    inner: Sequence[str] = getattr(model, "inner_prefixes", ("",))
    parts = [(trunk, ("", *inner) if len(inner) == 1 else ("",))]
    if len(files) > 1:
        parts = [
            ({k: v for k, v in trunk.items() if k.startswith(name)}, (name,)) for name in inner
        ]
    if len(parts) != len(files):
        raise UserError(
            f"{files[0].source}: {len(files)} files of weights, and the model has "
            f"{counted(len(inner), 'network')}: give one for each"
        )
    taken: Found = {}
    left: list[tuple[str, Tensor]] = []  # two files may have the same names
    hows: dict[str, None] = {}
    rows: tuple[str, ...] = ()
    for weights, (part, prefixes) in zip(files, parts, strict=True):
        given = {key: value.detach() for key, value in weights.state.items()}
        found, how, names = _matched(model, own, part, given, prefixes)
        _check_share(weights, part, found, head=head, used=names.values())
        of_head, rows = _rows(found, own, head=head, theirs=weights.findings, ours=findings)
        fitting = {
            key: _as_stem(value, own[key])
            for key, value in found.items()
            if key in part and _fits(value, own[key])
        }
        if weights.input == TORCHXRAYVISION:
            stem = next(key for key, tensor in part.items() if tensor.ndim == 4)
            fitting[stem] = fitting[stem] * TORCHXRAYVISION_SCALE
        taken |= fitting | of_head
        used = {name for key, name in names.items() if key in taken}
        left += [
            (name, value)
            for name, value in given.items()
            if name not in used and not name.endswith(_COUNTER)
        ]
        hows[how] = None
    model.load_state_dict(taken, strict=False)
    counters = {key for key in own if key.endswith(_COUNTER)}
    new = {key: own[key] for key in own if key not in taken.keys() | counters}
    trained = [(one.trained_on, one.split_sha256) for one in files]
    return TakenOver(
        source=" and ".join(one.source for one in files),
        how=" and ".join(hows),
        fits=_count(taken.values()),
        left=_count([value for _, value in left]),
        new=_count(new.values()),
        left_first=tuple(name for name, _ in left[:MOST_NAMED]),
        new_first=tuple(new)[:MOST_NAMED],
        findings=rows,
        seen=tuple(dict.fromkeys(name for one in files for name in one.seen)),
        trained_on=tuple((data, split) for data, split in trained if data is not None),
        normalize="symmetric" if any(one.input == TORCHXRAYVISION for one in files) else None,
    )


Found = dict[str, Tensor]


def _check_share(
    weights: Weights, trunk: Found, found: Found, *, head: str, used: Collection[str]
) -> None:
    share = _share(found, trunk)
    if share < LEAST_SHARE:
        unused = [name for name in weights.state if name not in used]
        raise UserError(
            f"{weights.source}: the weights do not fit: of the numbers below {head.rstrip('.')} "
            f"they hold {share:.0%}, and {LEAST_SHARE:.0%} are needed"
            f"{_misfits(trunk, found, unexpected=unused)}"
        )


def _matched(
    model: nn.Module, own: Found, trunk: Found, given: Found, prefixes: Sequence[str]
) -> tuple[Found, str, dict[str, str]]:
    """The file's tensors by the model's names, how they were matched, and their names in the file.

    A tensor whose name a conversion has changed is not among the names in the file.
    """
    ways: list[tuple[Found, str, dict[str, str]]] = []
    for inner in dict.fromkeys(prefixes):
        ours = {key.removeprefix(inner): key for key in own}
        names = {_OLD_DENSENET_KEY.sub(r"\1\2", key): key for key in given}
        prefix = _prefix(names, ours)
        names = {
            ours[key.removeprefix(prefix)]: name
            for key, name in names.items()
            if key.startswith(prefix) and key.removeprefix(prefix) in ours
        }
        names |= _lone_head(own, trunk, given, prefix)
        ways.append(({key: given[name] for key, name in names.items()}, "by name", names))
        ways += _converted(model, own, given, prefix=prefix, inner=inner)
    ways += _in_order(own, trunk, given)
    return max(ways, key=lambda way: _share(way[0], trunk))


def _lone_head(own: Found, trunk: Found, given: Found, prefix: str) -> dict[str, str]:
    """Match `fc.1.weight`, the last layer of a head with dropout, to `fc.weight` without it."""
    heads = [key for key in own if key not in trunk]
    lone = {key: prefix + re.sub(r"\.\d+\.(\w+)$", r".\1", key) for key in heads}
    same = len(heads) == 2 and all(name in given for name in lone.values())
    return lone if same else {}


def _share(found: Found, trunk: Found) -> float:
    fitting = {k: value for k, value in found.items() if k in trunk and _fits(value, trunk[k])}
    return _numbers(fitting, trunk) / max(1, _numbers(trunk, trunk))


def _prefix(names: Iterable[str], own: Container[str]) -> str:
    """What a wrapper has put before most names: `module.`, `backbone.` or nothing."""
    prefixes: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for place in range(len(parts)):
            if ".".join(parts[place:]) in own:
                prefixes[".".join(parts[:place]) + "." if place else ""] += 1
                break
    return prefixes.most_common(1)[0][0] if prefixes else ""


def _converted(
    model: nn.Module, own: Found, given: Found, *, prefix: str, inner: str
) -> Iterator[tuple[Found, str, dict[str, str]]]:
    """Match after timm's conversion of other projects' files and image sizes to this network."""
    network = model.get_submodule(inner.rstrip("."))
    convert = getattr(import_module(type(network).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return
    bare = {key.removeprefix(prefix): tensor for key, tensor in given.items()}
    try:
        made = convert(bare, network)
    except Exception:  # noqa: BLE001 - the file is of no kind that it knows
        return
    found = {inner + key: value for key, value in made.items() if inner + key in own}
    kept = {key: prefix + key.removeprefix(inner) for key in found}
    yield found, "converted by timm", {key: name for key, name in kept.items() if name in given}


def _in_order(
    own: Found, trunk: Found, given: Found
) -> Iterator[tuple[Found, str, dict[str, str]]]:
    """Match by order, if the kinds and shapes of all tensors below the head agree one by one."""
    wanted = [key for key in trunk if not key.endswith(_COUNTER)]
    there = [key for key in given if not key.endswith(_COUNTER)]
    pairs = list(zip(wanted, there, strict=False))
    alike = len(pairs) == len(wanted) and all(
        key.rpartition(".")[2] == name.rpartition(".")[2] and _fits(given[name], own[key])
        for key, name in pairs
    )
    if not alike:
        return
    further, heads = there[len(wanted) :], [key for key in own if key not in trunk]
    if [key.rpartition(".")[2] for key in further] == [key.rpartition(".")[2] for key in heads]:
        pairs += zip(heads, further, strict=True)
    names = dict(pairs)
    yield {key: given[name] for key, name in names.items()}, "by order and shape", names


def _fits(given: Tensor, own: Tensor) -> bool:
    return _as_stem(given, own).shape == own.shape


def _as_stem(given: Tensor, own: Tensor) -> Tensor:
    """Weights of a first convolution, summed from RGB to gray or spread from gray to RGB."""
    if given.ndim != 4 or own.ndim != 4 or given.shape[1] == own.shape[1]:
        return given
    if given.shape[1] == 3 and own.shape[1] == 1:
        return given.sum(dim=1, keepdim=True)
    if given.shape[1] == 1 and own.shape[1] == 3:
        return given.expand(-1, 3, -1, -1) / 3
    return given


def _rows(
    found: Found,
    own: Found,
    *,
    head: str,
    theirs: Sequence[str] | None,
    ours: Sequence[str] | None,
) -> tuple[Found, tuple[str, ...]]:
    """The head's tensors to load, and their findings: all, the rows of shared ones, or none."""
    of_head = {key: value for key, value in found.items() if key.startswith(head)}
    keys = [key for key in own if key.startswith(head)]
    whole = bool(keys) and all(
        key in of_head and of_head[key].shape == own[key].shape for key in keys
    )
    if whole and (theirs is None or ours is None or tuple(theirs) == tuple(ours)):
        return of_head, tuple(ours or ())
    last = [key for key in keys if own[key].shape[:1] == own[keys[-1]].shape[:1]]
    if theirs is None or ours is None or len(last) != 2 or len(keys) != 2:
        return {}, ()
    fits = all(
        key in of_head
        and len(of_head[key]) == len(theirs)
        and of_head[key].shape[1:] == own[key].shape[1:]
        for key in last
    )
    both = [name for name in ours if name in theirs]
    if not fits or not both:
        return {}, ()
    to, of = ([names.index(name) for name in both] for names in (list(ours), list(theirs)))
    taken = {}
    for key in last:
        taken[key] = own[key].clone()
        taken[key][to] = of_head[key][of].to(taken[key].dtype)
    return taken, tuple(both)


def _numbers(some: Mapping[str, Tensor], trunk: Found) -> int:
    return sum(v.numel() for k, v in some.items() if k in trunk and not k.endswith(_COUNTER))


def _count(some: Collection[Tensor]) -> tuple[int, int]:
    return len(some), sum(tensor.numel() for tensor in some)


def _misfits(trunk: Found, found: Found, *, unexpected: Sequence[str]) -> str:
    """The end of a message: the first few keys of each kind of mismatch."""
    faults = {
        "missing": [key for key in trunk if key not in found and not key.endswith(_COUNTER)],
        "unexpected": unexpected,
        "wrong shape": [
            f"{key} {tuple(value.shape)} for {tuple(trunk[key].shape)}"
            for key, value in found.items()
            if key in trunk and not _fits(value, trunk[key])
        ],
    }
    told = ""
    for fault, keys in faults.items():
        more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
        if keys:
            told += f"; {fault} {', '.join(map(printable, keys[:MOST_NAMED]))}{more}"
    return told
