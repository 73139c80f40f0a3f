"""tests/campaign.py for a fraction of a minute; a reader can run it for longer."""

import os
import subprocess
import sys

import pytest

from conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs forks, and limits on processes")
def test_random_violence_changes_no_number():
    command = [sys.executable, "tests/campaign.py", "--minutes", "0.4", "--seed", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
