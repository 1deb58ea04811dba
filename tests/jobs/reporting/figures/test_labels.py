"""No name lies on another, on a point or outside, whatever the points are."""

import random

from jobs.reporting.figures.labels import Box, Label, placed, width_of

INSIDE = Box(50, 30, 600, 400)


def test_names_never_overprint(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        at = [(rng.uniform(50, 600), rng.uniform(30, 400)) for _ in range(rng.randrange(1, 40))]
        points = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in at]
        wanted = [Label.on_line("full cache", rng.uniform(30, 400), 600, 13)]
        wanted += [Label.beside(f"policy_{index}@0.5", place, 10, 13) for index, place in enumerate(at)]
        found = [box for _, box in placed(wanted, points, INSIDE)]
        assert found and all(box.is_inside(INSIDE) for box in found)
        assert not any(one.meets(other) for one in found for other in points)
        assert not any(a.meets(b) for index, a in enumerate(found) for b in found[:index])


def test_a_name_alone_stands_right_of_its_point() -> None:
    ((text, box),) = placed([Label.beside("a", (100, 100), 10, 13)], [], INSIDE)
    assert text == "a" and box.left > 105 and box.right == box.left + width_of("a", 13)


def test_a_name_without_room_is_left_out() -> None:
    assert list(placed([Label.beside("a" * 200, (100, 100), 10, 13)], [], INSIDE)) == []
