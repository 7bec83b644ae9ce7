"""Random numbers that are a function of a seed and a number, not of what was drawn before."""

import torch
from torch import Tensor

PLACES = 16  # numbers set aside for each draw

# splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
# 2014), with the constants of Vigna's reference implementation, prng.di.unimi.it/splitmix64.c:
# its n-th output is mixed(seed + n * GAMMA), so any of them can be had at once.
GAMMA = 0x9E3779B97F4A7C15
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def uniforms(draws: Tensor, *, seed: int, places: int) -> Tensor:
    """Numbers in [0, 1) that depend on the seed, the draw's number and their place alone.

    Draw d gets the outputs from number 16 d on of a splitmix64 generator that starts from the
    mixed seed (so that neighbouring seeds are far apart), of each output the upper 24 bits. No
    state, no synchronisation: the same on every device, and in a CUDA graph.

    Args:
        draws: int64 (B,).
        places: how many for each draw, at most 16.

    Returns:
        float32 (B, places), on the device of `draws`.
    """
    count = torch.arange(1, places + 1, device=draws.device) + draws[:, None] * PLACES
    bits = _mixed(count * _signed(GAMMA) + _signed(mixed(seed)))
    shares: Tensor = _shifted(bits, 40) * 2.0**-24
    return shares


def mixed(number: int) -> int:
    """splitmix64's output function, of an unsigned 64-bit number."""
    number %= 2**64
    for shift, factor in ROUNDS:
        number = (number ^ number >> shift) * factor % 2**64
    return number


def _mixed(bits: Tensor) -> Tensor:
    """`mixed` of each element; int64 products wrap around to the same bits as unsigned ones."""
    for shift, factor in ROUNDS:
        bits = bits ^ _shifted(bits, shift)
        if factor != 1:
            bits = bits * _signed(factor)
    return bits


def _shifted(bits: Tensor, by: int) -> Tensor:
    """A logical right shift: torch's own copies the sign bit."""
    shifted: Tensor = (bits >> by) & (2 ** (64 - by) - 1)
    return shifted


def _signed(number: int) -> int:
    """The int64 of the same 64 bits."""
    return number - 2**64 if number >= 2**63 else number
