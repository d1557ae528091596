"""Publish a page and its timestamp together, every ten seconds."""
import sidecar

async def main() -> None:
    volume = sidecar.Volume("/shared")
    async for now in sidecar.every(10.0):
        page = f"<h1>Written at {now:%H:%M:%S}</h1>"
        await volume.publish({"index.html": page, "written_at.txt": now.isoformat()})

if __name__ == "__main__":
    sidecar.run(main())
