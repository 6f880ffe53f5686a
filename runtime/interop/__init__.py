"""Results in the formats of other tools: supervision's detections, COCO JSON, CSV, and MOT-challenge text."""
