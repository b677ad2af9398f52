"""Masks drawn on the GPU are those that NumPy draws, bit for bit, and leave the generator as NumPy leaves it."""

import numpy as np
import pytest

from minihra.kernels.cuda import drawing
from minihra.ops import references
from tests.cuda_twins import emulated, gpu_of_stand_ins

LIKE = np.zeros(1, np.float32)


def drawn(rng: np.random.Generator, shape: tuple[int, ...], rate: float) -> np.ndarray:
    return rng.random(shape, np.float32) >= rate


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
@pytest.mark.parametrize("left", [False, True], ids=["whole words", "half a word is left"])
def test_the_mask_is_numpys(left: bool, checked: bool) -> None:
    """For a thread that draws nothing, a part of its words, and several turns; one mask after another."""
    with emulated(threads=64 if checked else 10, checked=checked):
        for seed, shape in enumerate([(1,), (2,), (3,), (5, 7), (2, 3, 50), (40, 101), (0, 3)]):
            ours, numpys = (np.random.default_rng([seed, 7]) for _ in range(2))
            for rng in (ours, numpys):
                rng.random(3 if left else 2, np.float32)
            for rate in (0.1, 0.5):
                found = drawing.draw_keep(LIKE, ours, shape, rate=rate)
                assert found.dtype == bool and np.array_equal(found, drawn(numpys, shape, rate))
                assert ours.bit_generator.state == numpys.bit_generator.state
            assert ours.integers(0, 1000, 3).tolist() == numpys.integers(0, 1000, 3).tolist()


def test_numbers_on_the_border_are_kept() -> None:
    """As `>=` says: a rate that is one of the numbers to come."""
    numbers = np.random.default_rng(3).random(20, np.float32)
    with emulated():
        found = drawing.draw_keep(LIKE, np.random.default_rng(3), (20,), rate=float(numbers[4]))
    assert found[4] and np.array_equal(found, numbers >= numbers[4])


def test_strides() -> None:
    """Many steps at once are as many single ones, as numpy.random.PCG64.advance has them."""
    generator = np.random.PCG64(5)
    state, increment = (generator.state["state"][name] for name in ("state", "inc"))
    strides = drawing.strides_of(increment)
    for n in (0, 1, 2, 3, 1000, 123_456_789, 2**32 - 1):
        a, c = drawing.stride_of(n, strides)
        wanted = np.random.PCG64(5).advance(n).state["state"]["state"]
        assert (a * state + c) % 2**128 == wanted
    assert drawing.word_of(np.random.PCG64(5).advance(1).state["state"]["state"]) == np.random.PCG64(5).random_raw()


def test_another_generator_draws_on_the_host() -> None:
    rng = np.random.Generator(np.random.MT19937(0))
    assert drawing.draw_keep(LIKE, rng, (3, 4), rate=0.1) is NotImplemented


def test_the_switchboard_draws_where_the_model_is() -> None:
    from minihra.ops import draw_keep

    wanted = drawn(np.random.default_rng(1), (3, 4, 5), 0.3)
    assert np.array_equal(draw_keep(LIKE, np.random.default_rng(1), (3, 4, 5), rate=0.3), wanted)
    with gpu_of_stand_ins() as xp:
        like = xp.zeros(1, np.float32)
        for how in (np.random.PCG64, np.random.MT19937):
            mask = draw_keep(like, np.random.Generator(how(1)), (3, 4, 5), rate=0.3)
            assert np.array_equal(xp.asnumpy(mask), drawn(np.random.Generator(how(1)), (3, 4, 5), 0.3))
        with references():
            mask = draw_keep(like, np.random.default_rng(1), (3, 4, 5), rate=0.3)
        assert np.array_equal(xp.asnumpy(mask), wanted)
