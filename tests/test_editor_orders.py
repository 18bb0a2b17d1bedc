"""What to edit next: scores by their definitions, computed here the slow way, and the orders that follow from them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from editor_client import network

from hkmap.editor.ordering import ORDERS, orders, scores
from hkmap.editor.session import EditSession
from hkmap.errors import ChoiceError, RecordError
from hkmap.evaluation.prediction import predict
from hkmap.files.images import encode_png


@pytest.fixture(scope="module", name="network")
def shared_network():
    return network()


@pytest.fixture
def records(tmp_path):
    """Six records of 16 x 16 pixels: 1 has no map, 2 one of zeros, 4 no image that can be read; 5 is as 0."""
    lines = []
    for number in range(6):
        pixels = np.random.default_rng(number % 5).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        (tmp_path / f"{number}.png").write_bytes(b"none" if number == 4 else encode_png(pixels))
        values = np.zeros((16, 16), np.float32)
        if number not in (1, 2):
            row, column = divmod(number % 5, 2)
            values[row * 4 : row * 4 + 8, column * 8 : column * 8 + 8] = 1
        np.save(tmp_path / f"{number}.npy", cv2.GaussianBlur(values, (0, 0), 1.5))
        lines.append({"id": str(number), "image": str(tmp_path / f"{number}.png"), "size": [16, 16], "label": 0})
        if number != 1:
            lines[-1]["map"] = str(tmp_path / f"{number}.npy")
    return lines


@pytest.fixture
def session(records, network, tmp_path):
    return EditSession(records, tmp_path / "out", network=network)


def test_confidence_is_what_the_network_predicts_or_the_record_tells(session, records, network):
    readable = [record for record in records if record["id"] != "4"]
    wanted = {found.record["id"]: found.confidence for found in predict(network.model, readable)}
    found = scores(session, ["confidence"])["confidence"]
    assert found[4] is None
    for record in readable:
        assert found[int(record["id"])] == pytest.approx(wanted[record["id"]], abs=1e-6)
    assert found[0] == found[5]
    told = [{**record, "confidence": 0.9 - number / 10} for number, record in enumerate(records)]
    without = EditSession(told, session.folder.out)
    assert scores(without, ["confidence"])["confidence"] == [record["confidence"] for record in told]
    assert orders(without) == {"given": [0, 1, 2, 3, 4, 5], "confidence": [5, 4, 3, 2, 1, 0]}


def test_disagreement_is_what_the_highest_cells_do_not_share(records, tmp_path):
    """Of two maps without ties the highest 26 of 16 x 16 cells; the larger map is averaged first."""
    human, attention = (np.random.default_rng(seed).random((16, 16), np.float32) for seed in (1, 2))
    np.save(tmp_path / "0.npy", human)
    np.save(tmp_path / "attention.npy", attention)
    np.save(tmp_path / "large.npy", np.kron(attention, np.ones((2, 2), np.float32)))
    one, other = (set(np.argsort(-values, axis=None)[:26].tolist()) for values in (human, attention))
    wanted = 1 - len(one & other) / len(one | other)
    for name in ("attention", "large"):
        line = {**records[0], "attention": str(tmp_path / f"{name}.npy")}
        itself = {**records[3], "attention": records[3]["map"]}
        found = scores(EditSession([line, itself, records[5]], tmp_path / "out"), ["disagreement"])["disagreement"]
        assert found == [pytest.approx(wanted), pytest.approx(0), None]


def test_disagreement_asks_the_network_where_no_record_tells(session):
    found = scores(session, ["disagreement"])["disagreement"]
    assert [value is None for value in found] == [False, True, True, False, True, False]
    assert all(0 <= value <= 1 for value in found if value is not None)
    assert found[0] != found[3]


def test_edit_response_is_how_far_the_answer_moves(session, records, network):
    found = scores(session, ["edit_response"])["edit_response"]
    own = network.model.network
    for number, record in enumerate(records):
        if number == 4:
            assert found[number] is None
            continue
        pixels = torch.from_numpy(session.image(number) / 255.0)
        inputs = network.model.preprocessing
        image = ((pixels - torch.tensor(inputs.mean)) / torch.tensor(inputs.std)).permute(2, 0, 1)[None].float()
        values = np.load(record["map"]) if "map" in record else np.zeros((16, 16), np.float32)
        side = network.model.map_size[0]
        means = values.reshape(side, 16 // side, side, 16 // side).mean((1, 3))
        with torch.no_grad():
            before, after = (
                own(image, attention=given).logits.softmax(1)[0].tolist()
                for given in (None, torch.from_numpy(means)[None, None])
            )
        wanted = sum(abs(one - other) for one, other in zip(before, after, strict=True)) / 2
        assert found[number] == pytest.approx(wanted, abs=1e-5)
        assert wanted > 1e-4


def test_orders_go_from_what_most_needs_a_person(session):
    found = scores(session, list(ORDERS))
    made = orders(session, list(ORDERS))
    assert made["given"] == [0, 1, 2, 3, 4, 5]
    for name, sign in (("confidence", 1), ("disagreement", -1), ("edit_response", -1)):
        told = [number for number in range(6) if found[name][number] is not None]
        assert made[name][: len(told)] == sorted(told, key=lambda number: sign * found[name][number])
        assert made[name][len(told) :] == [number for number in range(6) if found[name][number] is None]
        assert made[name].index(0) < made[name].index(5)        # which tie


def test_only_what_is_asked_for_is_computed_once_per_image(session, monkeypatch):
    calls, ticks = [], []
    see = type(session.network).see
    monkeypatch.setattr(type(session.network), "see", lambda self, *given: (calls.append(1), see(self, *given))[1])
    assert list(orders(session)) == ["given"]
    assert not calls
    made = orders(session, ("edit_response", "confidence", "disagreement"), lambda: ticks.append(1))
    assert list(made) == ["given", "confidence", "disagreement", "edit_response"]
    assert len(calls) == 5
    assert len(ticks) == 6


def test_an_order_that_there_is_not_is_refused(session):
    with pytest.raises(ChoiceError, match="order 'confidense' is unknown; did you mean"):
        orders(session, ["confidense"])


@pytest.mark.parametrize(("order", "told"), [
    ("confidence", "--order confidence: no record tells the network's confidence; give --from RUN"),
    ("disagreement", "--order disagreement: no record has both a human map that is not zero and a map of the network"),
    ("edit_response", "--order edit_response: a network has to answer; give --from RUN"),
])
def test_an_order_of_which_nothing_is_known_is_refused(session, order, told):
    with pytest.raises(RecordError, match=told):
        orders(EditSession(session.records, session.folder.out), [order])
    assert list(orders(session, [order])) == ["given", order]
