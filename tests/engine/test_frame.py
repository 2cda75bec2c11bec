import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.frame import Box


@pytest.mark.parametrize(
    "sides", [(0, 0, 0, 1), (5, 0, 5, 1), (-1, 0, 5, 5), (0, 3, 5, 2)], ids=str
)
def test_a_box_without_pixels_is_refused(sides: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = sides
    with pytest.raises(ValueError, match="not a box"):
        Box(left=left, top=top, right=right, bottom=bottom)


def test_scaling_up_covers_the_same_share() -> None:
    box = Box(left=56, top=0, right=112, bottom=224)
    assert box.scaled(of=Box.whole(224, 224), to=Box.whole(640, 480)) == Box(
        left=160, top=0, right=320, bottom=480
    )


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.data(),
)
def test_a_scaled_box_holds_the_old_one_and_stays_inside(
    of: tuple[int, int], to: tuple[int, int], data: st.DataObject
) -> None:
    left, top = data.draw(st.integers(0, of[0] - 1)), data.draw(st.integers(0, of[1] - 1))
    right, bottom = data.draw(st.integers(left + 1, of[0])), data.draw(st.integers(top + 1, of[1]))
    box = Box(left=left, top=top, right=right, bottom=bottom)
    scaled = box.scaled(of=Box.whole(*of), to=Box.whole(*to))
    assert scaled.left <= left * to[0] / of[0] < scaled.left + 1
    assert scaled.right - 1 < right * to[0] / of[0] <= scaled.right <= to[0]
    assert scaled.bottom - 1 < bottom * to[1] / of[1] <= scaled.bottom <= to[1]
