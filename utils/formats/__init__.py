"""Other formats: COCO, YOLO, PNG class maps, labelme and CVAT, to and from the competition's; and their scores."""
