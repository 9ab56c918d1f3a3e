"""A folder around a detector: trained into it, loaded from it, its region, its check without labels, its ONNX file."""
