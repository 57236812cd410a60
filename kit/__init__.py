"""Train YOLO detectors on Kaggle, lose the session, run the notebook again: training goes on."""

from kit.config import load as load_config

__all__ = ["load_config"]
