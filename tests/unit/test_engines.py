"""The engines of training: columns made from a file's distinct values, and both engines, give what one by one gives."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.columns import encode_many
from features.plan import Plan, compile_plan
from features.spec import Spec, load_spec
from features.transaction import BLANKS, InvalidTransaction
from gocore.locate import missing_core
from models.dataset import Dataset, read_dataset
from models.engines import columns_of, slots_of
from models.generator import generate
from models.matrix import build_matrix

CARDS: Spec = load_spec("cards")
BLANK = BLANKS[0] * 8  # what erasure leaves of an id
PLAN: Plan = compile_plan(CARDS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A generated stream with blank devices, places at the ends of the world and amounts in several currencies."""
    table = generate(3_000, seed=6, days=45, fraud_share=0.05)
    devices = [BLANK if i % 7 == 0 else value for i, value in enumerate(table["device_id"].to_pylist())]
    lats = [(-90.0, 90.0, 0.0000005, 12.3456785)[i % 4] if i % 5 == 0 else v for i, v in enumerate(table["lat"].to_pylist())]
    for name, values, kind in (("device_id", devices, pa.string()), ("lat", lats, pa.float64())):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, kind))
    path = tmp_path_factory.mktemp("stream") / "rows.parquet"
    pq.write_table(table, path)
    return read_dataset(path, CARDS.source)


def test_columns_of_equal_the_codes_of_each_transaction(dataset: Dataset) -> None:
    """To the last number, absent ones included."""
    assert np.array_equal(columns_of(PLAN, dataset), encode_many(dataset.transactions(0, dataset.n_rows), PLAN))


def test_columns_of_unknown_currency_is_refused(dataset: Dataset) -> None:
    """As the engine refuses the transaction."""
    with pytest.raises(InvalidTransaction, match="has no rate"):
        columns_of(compile_plan(load_spec("handbook40")), dataset)


def test_slots_of_name_entities_and_leave_blank_ones_out(dataset: Dataset) -> None:
    """Rows of one slot are rows of one id; a blank or absent id has none; every slot fits its capacity."""
    slots, capacities = slots_of(PLAN, dataset)
    txs = dataset.transactions(0, dataset.n_rows)
    for kind in PLAN.kinds:
        ids = [getattr(tx, kind.id_field) for tx in txs]
        pairs = set(zip(ids, slots[:, kind.number].tolist(), strict=True))
        assert all((slot < 0) == (entity in (None, BLANK)) for entity, slot in pairs)
        assert len({slot for _, slot in pairs if slot >= 0}) == len({entity for entity, slot in pairs if slot >= 0})
        assert slots[:, kind.number].max() < capacities[kind.number]
    assert (slots[:, 2] < 0).sum() >= 3000 // 7


@pytest.mark.skipif(missing_core() is not None, reason=missing_core() or "")
@pytest.mark.parametrize("name", ["cards", "handbook40"])
def test_build_matrix_both_engines_give_the_same(name: str, dataset: Dataset, tmp_path: Path) -> None:
    """Within 2 float32 ulp, and exactly where no logarithm, root or angle is involved."""
    plan = compile_plan(load_spec(name))
    if name != "cards":
        rows = pq.read_table(_euros(tmp_path))
        pq.write_table(rows, tmp_path / "euros.parquet")
        dataset = read_dataset(tmp_path / "euros.parquet", CARDS.source)
    go, reference = (build_matrix(plan, dataset, engine=engine) for engine in ("go", "numpy"))
    rounded = {"std", "zscore", "distinct", "speed_kmh"}
    exact = [not f.log1p and f.op not in rounded for f in load_spec(name).features]
    assert np.array_equal(go[:, exact], reference[:, exact])
    np.testing.assert_array_max_ulp(go + np.float32(0), reference + np.float32(0), 2)  # -0 and 0 are one number


def _euros(directory: Path) -> Path:
    table = generate(3_000, seed=6, days=45, fraud_share=0.05)
    euros = pa.array(["EUR"] * table.num_rows)
    path = directory / "generated.parquet"
    pq.write_table(table.set_column(table.column_names.index("currency"), "currency", euros), path)
    return path
