"""The tests' Hub answers huggingface_hub itself as the real one does; what rests on it is as good as this."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.hub_server import HubServer

READER = """
import json, sys
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, errors
api, seen = HfApi(), {}
seen["sha"] = api.dataset_info("owner/set").sha
seen["tree"] = [item.path for item in api.list_repo_tree("owner/set", repo_type="dataset", recursive=True)]
seen["sizes"] = [item.size for item in api.get_paths_info("owner/set", ["a.tar", "sub"], repo_type="dataset")[:1]]
seen["small"] = open(hf_hub_download("owner/set", "sub/_info.json", repo_type="dataset")).read()
seen["large"] = len(open(hf_hub_download("owner/set", "a.tar", repo_type="dataset"), "rb").read())
with HfFileSystem().open("datasets/owner/set/a.tar", block_size=1000) as file:
    file.seek(2500)
    seen["range"] = list(file.read(5))
for name, revision, path in (("gated", "main", "a.tar"), ("private", "main", "a.tar"), ("none", "main", "a.tar"),
                             ("set", "v9", "a.tar"), ("set", "main", "none.tar")):
    try:
        hf_hub_download(f"owner/{name}", path, repo_type="dataset", revision=revision)
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        seen[f"{name} {revision} {path}"] = type(error).__name__
print(json.dumps(seen))
"""

WRITER = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, errors
api = HfApi()
url = api.create_repo("someone/model", private=True)
made = api.upload_folder(folder_path=sys.argv[1], repo_id="someone/model", commit_message="First")
again = api.upload_folder(folder_path=sys.argv[1], repo_id="someone/model", commit_message="Again")
print(json.dumps({"url": str(url), "same": made.oid == again.oid, "who": api.whoami()["name"],
                  "siblings": [item.rfilename for item in api.model_info("someone/model").siblings]}))
"""


def ask(program: str, server: HubServer, home: Path, token: str = "", *arguments: str) -> dict[str, object]:
    environment = {**os.environ, **server.environment(home, token)}
    line = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_huggingface_hub_reads_from_it(tmp_path: Path) -> None:
    large = bytes(range(250)) * 20
    with HubServer() as server:
        server.users["hf_good"] = "someone"
        server.page = 2
        files = {"a.tar": large, "b.tar": b"b", "sub/_info.json": b"{}", "README.md": b"# A set"}
        commit = server.add("datasets", "owner/set", files)
        server.add("datasets", "owner/gated", files, gated=True)
        server.add("datasets", "owner/private", files, private=True)
        server.fail("resolve", ["429", "503"])
        seen = ask(READER, server, tmp_path, "hf_good")
        assert seen == {
            "sha": commit,
            "tree": ["README.md", "a.tar", "b.tar", "sub", "sub/_info.json"],
            "sizes": [5000],
            "small": "{}",
            "large": 5000,
            "range": list(large[2500:2505]),
            "gated main a.tar": "GatedRepoError",
            "private main a.tar": "RepositoryNotFoundError",
            "none main a.tar": "RepositoryNotFoundError",
            "set v9 a.tar": "RevisionNotFoundError",
            "set main none.tar": "RemoteEntryNotFoundError",
        }
        assert server.count("api", "cursor=4") == 1  # pages of two
        assert {request.token for request in server.requests if request.part == "api"} == {"hf_good"}
        assert {request.token for request in server.requests if request.part == "storage"} == {""}


def test_huggingface_hub_writes_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "model.safetensors").write_bytes(bytes(3000))
    with HubServer() as server:
        server.users["hf_good"] = "someone"
        server.writers.add("someone")
        seen = ask(WRITER, server, tmp_path, "hf_good", str(folder))
        assert seen == {
            "url": f"{server.endpoint}/someone/model",
            "same": True,
            "who": "someone",
            "siblings": [".gitattributes", "README.md", "model.safetensors"],
        }
        repository = server.repositories["models", "someone/model"]
        assert repository.private
        assert repository.commits[repository.head]["model.safetensors"] == bytes(3000)
        assert repository.messages[repository.head] == "First"
