"""What people see of a run: the page of a report (`page`), pictures (`plots`), and a classifier's sections.

Knows figures and files, not how they came about: imports `mlcore.base` and `mlcore.metrics`, and of the other wings
nothing. `page` and `plots` do not know each other; a plot writes a PNG, which a `Picture` of the page names. What both
show is a `tile`.
"""
