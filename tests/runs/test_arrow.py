"""pyarrow without pandas."""

import subprocess
import sys

TRIED = """
import sys
import pyarrow as pa
from ray_app.runs import arrow

if {left_out}:
    arrow.leave_pandas_out()
pa.array([1, 2]), pa.chunked_array([[1, 2]]).to_numpy()
print("pandas" in sys.modules)
import pandas
table = pa.Table.from_pandas(pandas.DataFrame({{"a": [1.0, float("nan")]}}))
print(table["a"].null_count, list(table.to_pandas().columns), pa.array(pandas.Series([1.0, float("nan")])).null_count)
"""


def test_pandas_is_left_out_until_somebody_wants_it():
    first, said = (
        subprocess.run([sys.executable, "-c", TRIED.format(left_out=left_out)], capture_output=True, text=True, check=True).stdout
        for left_out in (False, True)
    )
    assert first.splitlines()[0] == "True", "pyarrow no longer imports pandas by itself: leave_pandas_out can go"
    assert said.splitlines() == ["False", "1 ['a'] 1"]
