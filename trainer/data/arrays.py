"""The types of arrays that series are read into and drawn from."""

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Moments = npt.NDArray[np.datetime64]
Words = npt.NDArray[np.uint64]
