"""Answer with whatever the writer published last."""
from aiohttp import web
import sidecar

async def greet(request: web.Request) -> web.Response:
    snapshot = request.app[sidecar.LATEST].snapshot
    return web.json_response({"version": snapshot.version, "at": snapshot.text("written_at.txt")})

app = web.Application()
app.cleanup_ctx.append(sidecar.follow("/shared"))
app.add_routes([web.get("/", greet), *sidecar.health_routes()])
app.add_subapp("/site/", sidecar.files_app("/shared"))

if __name__ == "__main__":
    sidecar.run(sidecar.serve(app, port=8080))
