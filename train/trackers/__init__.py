"""Follow a run with other tools: TensorBoard, a CSV file, MLflow, Weights & Biases (--log)."""
