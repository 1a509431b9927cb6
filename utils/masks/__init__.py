"""Masks: RLE, polygons drawn as the competition draws them, soft labels, exact upsampling, Dice."""
