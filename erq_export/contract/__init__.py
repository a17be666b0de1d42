"""What crosses walls: records, names, grids and files that every room speaks of; imports no room and no timm."""
