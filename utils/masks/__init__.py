"""Masks: `masks.Masks`, RLE, polygons drawn as in the competition, soft labels, exact upsampling, Dice."""
