"""A recogniser judged on faces: all pairs, listed pairs, search; against counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from privfr.errors import InputError
from privfr.evaluation import Evaluation, evaluate_on, listed_trials
from privfr.faces.datasets import Faces
from privfr.faces.recogniser import Recogniser
from privfr.faces.verification import read_pairs

SIZE = (64, 64)


class Colours(torch.nn.Module):
    """The mean colour of a picture, so that embeddings are known by construction."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


MODEL = Recogniser("small", SIZE, 3, Colours())


def faces(colours: dict[str, list[tuple[int, int, int]]]) -> Faces:
    """One-coloured pictures; names as LFW's."""
    images, labels, files = [], [], []
    for label, (name, shades) in enumerate(colours.items()):
        for number, shade in enumerate(shades, 1):
            images.append(np.broadcast_to(np.array(shade, np.uint8), (*SIZE, 3)))
            labels.append(label)
            files.append(f"{name}/{name}_{number:04d}.jpg")
    return Faces(np.stack(images), np.array(labels, np.int64), tuple(colours), tuple(files))


def drawn(people: int, each: int, noise: float, seed: int = 0) -> Faces:
    """People around a colour of their own."""
    rng = np.random.default_rng(seed)
    own = rng.uniform(0, 255, (people, 3))
    return faces(
        {
            f"P{person:02d}": [
                tuple(np.clip(own[person] + rng.normal(0, noise, 3), 0, 255).astype(int)) for _ in range(each)
            ]
            for person in range(people)
        }
    )


APART = {
    "Red": [(250, 0, 0), (240, 5, 0), (245, 0, 5)],
    "Green": [(0, 250, 0), (5, 240, 0), (0, 245, 5)],
    "Blue": [(0, 0, 250), (0, 5, 240), (5, 0, 245)],
    "White": [(250, 250, 250), (240, 240, 245), (245, 240, 240)],
}


def test_people_who_differ_are_told_apart() -> None:
    found = evaluate_on(MODEL, faces(APART), samples=0)
    assert found.eer == 0
    assert found.auc == 1
    assert (found.genuine, found.impostor) == (4 * 3, 12 * 11 // 2 - 12)
    assert found.intervals == {}
    assert found.accuracy is None and found.folds is None


def test_people_who_look_alike_are_not() -> None:
    found = evaluate_on(MODEL, drawn(6, 4, 500.0), samples=0)
    assert 0.25 < found.eer < 0.75


def test_eer_and_auc_by_counting() -> None:
    data = drawn(8, 5, 40.0)
    found = evaluate_on(MODEL, data, samples=0)
    embeddings = MODEL.embed(data.images)
    scores = (embeddings @ embeddings.T)[np.triu_indices(len(data), 1)]
    same = (data.labels[:, None] == data.labels)[np.triu_indices(len(data), 1)]
    genuine, impostor = scores[same][:, None], scores[~same]
    wins = (genuine > impostor).mean() + (genuine == impostor).mean() / 2
    assert found.auc == pytest.approx(wins, abs=1e-3)
    gaps = [(abs((scores[~same] >= t).mean() - (scores[same] < t).mean()), t) for t in scores]
    _, at = min(gaps)
    lower, upper = sorted([(scores[~same] >= at).mean(), (scores[same] < at).mean()])
    assert lower - 0.02 <= found.eer <= upper + 0.02


def test_intervals_hold_the_figure_and_repeat() -> None:
    data = drawn(10, 4, 60.0)
    one, same = (evaluate_on(MODEL, data, samples=50, seed=3) for _ in range(2))
    assert one == same
    assert set(one.intervals) >= {"eer", "auc"}
    assert one.intervals["eer"].low <= one.eer <= one.intervals["eer"].high
    assert one.intervals["eer"].low < one.intervals["eer"].high
    assert evaluate_on(MODEL, data, samples=50, seed=4).intervals != one.intervals


def test_a_far_that_the_pairs_cannot_resolve_is_left_out() -> None:
    few, many = evaluate_on(MODEL, faces(APART), samples=0), evaluate_on(MODEL, drawn(30, 4, 40.0), samples=0)
    assert "1e-6" not in many.tar_at_far
    assert len(few.tar_at_far) < len(many.tar_at_far)
    rates = list(many.tar_at_far.values())
    assert rates == sorted(rates, reverse=True)


# Search


def test_search_by_hand() -> None:
    """Red and Blue are enrolled by their first picture and sought by two; the others are strangers."""
    search = evaluate_on(MODEL, faces(APART), samples=0).identification
    assert search is not None
    assert (search.enrolled, search.probes, search.strangers) == (2, 4, 6)
    assert search.rank1 == 1.0


def test_search_that_fails_says_so() -> None:
    mixed = {
        "Red": [(250, 0, 0), (0, 0, 250)], "Green": [(0, 250, 0), (0, 240, 0)],
        "Blue": [(0, 0, 250), (250, 0, 0)], "White": [(250, 250, 250), (240, 240, 240)],
    }  # fmt: skip
    search = evaluate_on(MODEL, faces(mixed), samples=0).identification
    assert search is not None
    assert search.rank1 == 0.0
    assert (search.enrolled, search.probes, search.strangers) == (2, 2, 4)


def test_search_does_not_depend_on_the_order_of_pictures() -> None:
    data = drawn(9, 4, 40.0)
    order = np.random.default_rng(1).permutation(len(data))
    one = evaluate_on(MODEL, data, samples=0)
    other = evaluate_on(MODEL, data.select(order), samples=0)
    assert (one.eer, one.auc) == pytest.approx((other.eer, other.auc))
    assert one.identification is not None and other.identification is not None
    assert (one.identification.enrolled, one.identification.probes) == (
        other.identification.enrolled,
        other.identification.probes,
    )


def test_nobody_to_enrol() -> None:
    """Every second person, by number, has one picture only."""
    data = faces({"A": [(9, 0, 0)], "B": [(0, 9, 0), (0, 8, 0)], "C": [(0, 0, 9)]})
    found = evaluate_on(MODEL, data, samples=0)
    assert found.identification is None
    assert found.genuine == 1


def test_open_set_rate_lies_between_none_and_rank1() -> None:
    search = evaluate_on(MODEL, drawn(40, 6, 50.0), samples=0).identification
    assert search is not None and "1e-1" in search.tpir_at_fpir
    rates = list(search.tpir_at_fpir.values())
    assert all(0 <= rate <= search.rank1 for rate in rates)
    assert rates == sorted(rates, reverse=True)


# Listed pairs


def pairs(tmp_path: Path, text: str) -> Path:
    (tmp_path / "pairs.txt").write_text(text)
    return tmp_path / "pairs.txt"


def on_pairs(tmp_path: Path, data: Faces, text: str, samples: int = 0) -> Evaluation:
    return evaluate_on(MODEL, data, read_pairs(pairs(tmp_path, text)), samples=samples)


FOLDS = (
    "2 2\nRed 1 2\nGreen 1 2\nRed 1 Green 1\nRed 2 Blue 2\n"
    "Blue 1 3\nWhite 1 2\nBlue 1 White 1\nGreen 3 White 3\n"
)


def test_folds_of_people_who_differ(tmp_path: Path) -> None:
    found = on_pairs(tmp_path, faces(APART), FOLDS, samples=20)
    assert found.accuracy == 1.0
    assert (found.eer, found.auc) == (0, 1)
    assert (found.genuine, found.impostor) == (4, 4)
    assert found.folds is not None and found.folds.accuracy == 1.0
    assert set(found.intervals) == {"eer", "auc"}  # folds of four pairs bear no resampling
    assert found.identification is None


def test_a_fold_is_judged_at_the_other_folds_threshold(tmp_path: Path) -> None:
    """Fold 1 can be told apart at any threshold in (0, 1), fold 2 only below 0.8: accuracy by hand."""
    data = faces(
        {
            "A": [(250, 128, 128), (250, 128, 128)], "B": [(128, 250, 128), (128, 250, 128)],
            "C": [(250, 250, 128), (250, 128, 128)], "D": [(128, 128, 250), (128, 128, 250)],
        }
    )  # fmt: skip
    text = "2 1\nA 1 2\nA 1 B 1\nC 1 2\nC 1 D 1\n"
    trials = listed_trials(MODEL, data, read_pairs(pairs(tmp_path, text)))
    np.testing.assert_allclose(trials.scores, [1, 0, 0.707, 0], atol=0.02)
    found = on_pairs(tmp_path, data, text)
    assert found.accuracy == 1.0, "the middle of (0, 1) from fold 1 is below 0.707"
    assert found.auc == 1.0


def test_one_fold_takes_its_best_threshold(tmp_path: Path) -> None:
    found = on_pairs(tmp_path, faces(APART), "2\nRed 1 2\nGreen 1 2\nRed 1 Green 1\nRed 2 Blue 2\n", 20)
    assert found.accuracy == 1.0
    assert found.folds is None
    assert "accuracy" not in found.intervals


def test_wrong_pairs_are_counted_wrong(tmp_path: Path) -> None:
    mixed = {"Red": [(250, 0, 0), (0, 250, 0)], "Green": [(0, 250, 0), (250, 0, 0)]}
    found = on_pairs(tmp_path, faces(mixed), "1\nRed 1 2\nRed 1 Green 2\n")
    assert found.accuracy == 0.5
    assert found.auc == 0


def test_pictures_that_no_pair_names_are_not_embedded(tmp_path: Path) -> None:
    """An unreadable thousand beside the listed few costs nothing: the network sees the listed only."""

    class Counting(Colours):
        seen = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen += len(images)
            return super().forward(images)

    network = Counting()
    model = Recogniser("small", SIZE, 3, network)
    listed = read_pairs(pairs(tmp_path, "1\nP00 1 2\nP00 1 P01 1\n"))
    evaluate_on(model, drawn(50, 4, 40.0), listed, samples=0)
    assert network.seen == 3


def test_pairs_that_name_missing_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Red/Red_0009"):
        on_pairs(tmp_path, faces(APART), "1\nRed 1 9\nRed 1 Green 1\n")


# What allows no comparison


def test_one_person() -> None:
    with pytest.raises(InputError, match="at least 2 people"):
        evaluate_on(MODEL, faces({"Red": APART["Red"]}))


def test_one_picture_each() -> None:
    with pytest.raises(InputError, match="no person here has two pictures"):
        evaluate_on(MODEL, faces({"Red": [(9, 0, 0)], "Green": [(0, 9, 0)]}))


def test_pictures_of_another_size() -> None:
    model = Recogniser("small", (112, 112), 3, Colours())
    with pytest.raises(InputError, match="64x64"):
        evaluate_on(model, faces(APART))
