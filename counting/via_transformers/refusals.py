"""Texts of error messages that several files use. Torch-free."""


def no_count_of(mixer: str) -> str:
    """The reason why layers that keep a state are refused; `mixer` names the layers."""
    return (
        f"{mixer} carry a state from token to token, which transformers' reference code computes in part by "
        "elementwise steps: a count of matrix products would leave that out, so none is given"
    )


def one_line(error: BaseException, longest: int = 300) -> str:
    """An error's message on one line, with at most `longest` characters; its type if the message is empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
