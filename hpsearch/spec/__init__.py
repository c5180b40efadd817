"""What is asked: pydantic only, closed and frozen. Describing a study costs nothing."""

from hpsearch.spec.finetune import FinetuneConfig, ModelSpec
from hpsearch.spec.study import StudySpec

__all__ = ["FinetuneConfig", "ModelSpec", "StudySpec"]
