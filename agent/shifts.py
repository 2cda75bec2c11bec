"""When shifts begin."""

from datetime import datetime, timedelta


def shift_began_ns(now: float, shifts: tuple[str, ...]) -> int:
    """When the shift of `now` began, by the local times of day at which shifts begin."""
    today = datetime.fromtimestamp(now).astimezone()
    starts = []
    for day in (today - timedelta(days=1), today):
        for shift in shifts:
            hour, minute = map(int, shift.split(":"))
            starts.append(day.replace(hour=hour, minute=minute, second=0, microsecond=0))
    return round(max(start for start in starts if start <= today).timestamp() * 1e9)
