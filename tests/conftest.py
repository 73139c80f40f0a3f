"""Tests import the project's files as a reader runs them: from the repository's top folder."""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
torch.set_num_threads(1)  # models this small only lose time to a second thread
