"""The colours of the parts of the model, the same in every figure and page."""

PALETTE = {
    "attention": "#3B86C8",
    "global attention": "#E4572E",
    "MLP": "#2F9E5B",
    "PLE": "#FFC233",
    "embedding": "#7A4FB5",
    "experts": "#7F5539",
    "vision": "#149C94",
    "audio": "#DE6FA1",
    "norms": "#777777",
    "never read": "#BBBBBB",
}
PLE_EDGE = "#7A4B00"  # amber is too light for white paper: whatever is amber has this edge
