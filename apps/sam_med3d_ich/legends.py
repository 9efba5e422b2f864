"""Where the legends of this app's pictures stand."""

from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

_LABELS_IN = 0.55  # inches that numbers and name of the x axis take


def legend_below(axes: Axes) -> None:
    """Put the legend, if there is anything to name, below the axes and their labels, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    corner = axes.transAxes + ScaledTranslation(0.0, -_LABELS_IN, axes.figure.dpi_scale_trans)
    axes.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.0, 0.0),
        bbox_transform=corner,
        ncols=3,
        borderaxespad=0.0,
        borderpad=0.0,
        columnspacing=1.4,
    )
