"""The terms of the loss: functions from `Batch` to a scalar, each with its reduction stated."""
