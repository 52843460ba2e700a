"""Errors: complete texts, and places that survive engines and pickling."""

import gc
import math
import pickle
import weakref

import polars as pl
import pytest

import aq2_pipeline
from aq2_pipeline import Aq2Error, InputValueError
from aq2_pipeline.errors import Place

BAD = pl.DataFrame({"w": [[1.0, 2.0], [3.0, float("nan")]]})


@pytest.mark.parametrize("lazy", [False, True])
def test_a_polars_error_knows_its_place(lazy):
    """Polars makes a new exception of class and text; the place comes back all the same."""
    frame = BAD.lazy() if lazy else BAD
    with pytest.raises(InputValueError, match=r"row \d .*position 1") as caught:
        frame.select(pl.col("w").aq2.quantize(4)).lazy().collect()
    error = caught.value
    assert error.function == "aq2_quantize"
    assert error.position == 1
    assert math.isnan(error.value)
    assert error.place.batch in (1, 2)


def test_a_text_says_place_reason_and_hint():
    """Whatever is known of the place comes first, the hint last."""
    error = Aq2Error("the sky falls", "run", Place(function="f", layer="a", row=3, position=4, batch=9))
    assert str(error) == "f: layer 'a', row 3 of this batch of 9, position 4: the sky falls. Hint: run"
    assert str(Aq2Error("the sky falls")) == "the sky falls"


def test_errors_pickle_with_their_place():
    """Another process sees the same row, value and text."""
    with pytest.raises(InputValueError) as caught:
        aq2_pipeline.quantize(BAD["w"], 4)
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (copy.row, copy.position, str(copy)) == (1, 1, str(caught.value))


def test_a_caught_error_keeps_no_frame_alive():
    """What is remembered for Polars' copies are parts of errors, not tracebacks."""

    class Token:
        pass

    def caller():
        token = Token()
        with pytest.raises(InputValueError):
            BAD.select(pl.col("w").aq2.quantize(4))
        return weakref.ref(token)

    alive = caller()
    gc.collect()
    assert alive() is None
