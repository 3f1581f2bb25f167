"""Align-DETR's criterion on DAB-DETR: anchors as queries, one scale, full attention."""
