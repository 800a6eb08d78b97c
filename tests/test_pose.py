import numpy as np

from data.pose import move, normalise
from data.pose_drawing import draw_pose
from data.schema import JOINTS


def test_normalised_pose_hides_what_is_outside():
    pose = np.float32([[50, 20, 1], [-1, 20, 1], [101, 20, 1], [100, 40, 1], [0, 0, 0]])
    assert normalise(pose, (40, 100)).tolist() == [[0.5, 0.5, 1], [0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_moved_pose_leaves_the_invisible_at_zero():
    pose = np.float32([[50, 20, 1], [0, 0, 0]])
    assert move(pose, (2, 0.5), (10, 3)).tolist() == [[28, 50, 1], [0, 0, 0]]


def test_drawing_shows_visible_limbs_only():
    image, pose = np.zeros((100, 50, 3), np.uint8), np.zeros((18, 3), np.float32)
    assert (draw_pose(image, pose) == image).all()
    pose[JOINTS.index("right_elbow")], pose[JOINTS.index("right_wrist")] = (0.5, 0.2, 1), (0.5, 0.8, 1)
    drawn = draw_pose(image, pose)
    assert drawn[50, 25].any() and not drawn[:15].any() and not drawn[:, :20].any() and not image.any()
