import numpy as np
import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import check_content
from embedding_platform.records import Sound
from embedding_platform_tests.models.small_models import make_clips, make_images

CONTENTS = {"text": "a", "image": make_images()[0], "audio": Sound(np.zeros(9, np.float32)), "video": make_clips()[0]}
NO_CONTENTS = {"bytes": b"\xff\xd8\xff\xe0", "samples": np.zeros(9, np.float32), "a path": CONTENTS}


@pytest.mark.parametrize("role", CONTENTS)
@pytest.mark.parametrize("given", [*CONTENTS, *NO_CONTENTS])
def test_contents_have_to_be_of_the_role(role, given):
    content = {**CONTENTS, **NO_CONTENTS}[given]
    if role == given:
        check_content((role,), role, content)
    else:
        with pytest.raises(TypeError, match=rf"^{role} contents are \w+, not {type(content).__name__}; decode .*$"):
            check_content((role,), role, content)


def test_a_role_the_model_lacks_is_refused_with_those_it_has():
    with pytest.raises(PlatformError, match="does not embed audio; it embeds image and text"):
        check_content(("image", "text"), "audio", CONTENTS["audio"])
