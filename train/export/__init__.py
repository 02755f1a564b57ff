"""Export of a trained encoder for torchvision, timm, safetensors and ONNX, with its model card."""
