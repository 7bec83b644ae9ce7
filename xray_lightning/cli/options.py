"""What several commands take."""


def findings_of(names: str | None) -> tuple[str, ...] | None:
    """The findings that --findings names, as in Effusion,Mass; None where it is not given.

    Raises:
        UserError: a name that is none, or is there twice.
    """
    from xray_lightning.findings import check_findings  # `xray --help` should not wait for pandas

    if names is None:
        return None
    return check_findings([name.strip() for name in names.split(",")], what="--findings")
