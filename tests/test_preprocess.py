import numpy as np
import pytest

from data.agnostic import GRAY, grow
from data.framing import fit, person_box
from data.images import read_image
from data.pose import move
from data.preprocess import Preparation, cut_out, make_flat_sample, make_ready_sample, make_sample, soft_alpha
from data.schema import JOINTS, Part, Photo
from data.synthetic import draw_pair
from tests.real_photos import cotton

SIZE = (256, 192)


def test_cut_out_is_gray_outside_and_mixed_at_the_edge():
    image = np.full((1, 3, 3), (200, 0, 128), np.uint8)
    assert cut_out(image, np.array([[0, 0.5, 1]])).tolist() == [[[128, 128, 128], [164, 64, 128], [200, 0, 128]]]


def test_garment_is_whole_and_alone():
    person, garment = draw_pair(0, 4, SIZE)
    sample = make_sample("a", person, garment, Preparation(SIZE))
    worn = garment.parts == Part.UPPER
    core = ~grow(~worn, 2)
    assert (sample.garment[core] == garment.image[core]).all() and (sample.garment[~worn] == GRAY).all()
    np.testing.assert_allclose(sample.garment_pose[:, :2] * (192, 256), garment.pose[:, :2], atol=1e-3)
    assert (sample.person == person.image).all() and (sample.garment_pose != sample.person_pose).any()


def test_a_garment_at_the_edge_of_its_photograph_ends_there():
    person, garment = draw_pair(0, 4, SIZE)
    garment.image[:, :20], garment.parts[:, :20] = (200, 30, 30), Part.UPPER
    sample = make_sample("a", person, garment, Preparation((256, 256)))
    assert (sample.garment[:, 32:48] != GRAY).any() and (sample.garment[:, :31] == GRAY).all()


def test_flat_garment_has_no_pose(real_data):
    photo = cotton(real_data, 3)
    cloth = read_image(real_data / "cotton/cloth/3.jpg")
    mask = read_image(real_data / "cotton/cloth-mask/3.png")[..., 0] >= 128
    sample = make_flat_sample("3", photo, cloth, mask, Preparation((128, 128)))
    assert sample.garment_pose.shape == (18, 3) and not sample.garment_pose.any()
    assert sample.person_pose[:, 2].sum() == 18
    assert (sample.garment[0] == GRAY).all() and (sample.garment[:, :20] == GRAY).all()
    olive = sample.garment[64, 64].astype(int)
    assert olive[0] > olive[2] + 10, f"RGB, not BGR: {olive}"
    with pytest.raises(ValueError, match=r"'3': the cloth mask is empty"):
        make_flat_sample("3", photo, cloth, mask & False, Preparation((128, 128)))


def test_a_photo_without_garment_is_refused():
    person, garment = draw_pair(0, 0, (64, 64))
    bare = garment._replace(parts=np.where(garment.parts == Part.UPPER, 0, garment.parts).astype(np.uint8))
    how = Preparation((64, 64))
    with pytest.raises(ValueError, match=r"'k', garment photo: no pixel is labelled upper garment; check --label-map"):
        make_sample("k", person, bare, how)
    with pytest.raises(ValueError, match=r"'k', person photo: no pixel"):
        make_sample("k", bare, garment, how)
    with pytest.raises(ValueError, match=r"64x32 pixels, but its photograph has 64x64"):
        make_sample("k", person._replace(parts=person.parts[:, ::2]), garment, how)


def test_parse_maps_read_by_another_label_map_are_refused():
    """Or the garment, taken for a head, would stand in the agnostic picture."""
    person, garment = draw_pair(0, 0, (64, 64))
    swapped = np.array([Part.BACKGROUND, Part.UPPER, Part.NECK, Part.HEAD, *range(4, 10)], np.uint8)
    with pytest.raises(ValueError, match=r"'k', person photo: most of the torso is labelled head.*check --label-map"):
        make_sample("k", person._replace(parts=swapped[person.parts]), garment, Preparation((64, 64)))
    make_sample("k", person, garment, Preparation((64, 64)))


def test_soft_edges_lie_inside_the_mask_and_scale_with_it(real_data):
    mask = read_image(real_data / "cotton/cloth-mask/3.png")[..., 0] >= 128
    alpha = soft_alpha(mask)
    assert not alpha[~mask].any() and (alpha[mask & grow(~mask, 1)] < 1).mean() > 0.9
    assert (alpha == 1).sum() > 0.98 * mask.sum()
    double = soft_alpha(mask.repeat(2, 0).repeat(2, 1))[::2, ::2]
    assert np.abs(double - alpha).mean() < 0.002


@pytest.mark.parametrize("rule", ["paper", "viton_hd"])
@pytest.mark.parametrize("crop", [False, True])
def test_person_agnostic_and_pose_share_one_frame(real_data, crop, rule):
    """Wherever the agnostic image is not gray it is the person's, pixel by pixel, and the nose lies on the head."""
    photo = cotton(real_data, 3)
    wide = np.pad(photo.image, ((0, 0), (900, 300), (0, 0)), mode="edge")
    parts = np.pad(photo.parts, ((0, 0), (900, 300)))
    person = Photo(wide, parts, move(photo.pose, (1, 1), (0, 900)))
    sample = make_sample("a", person, photo, Preparation((256, 256), rule, crop))
    same = (np.abs(sample.person.astype(int) - sample.clothing_agnostic).max(-1) < 3).mean()
    assert same > 0.4
    x, y = (sample.person_pose[JOINTS.index("nose"), :2] * 256).astype(int)
    assert (sample.clothing_agnostic[y, x] == sample.person[y, x]).all() and sample.person[y, x].max() < 230
    height = np.ptp(sample.person_pose[:, 1]) * 256
    assert (height > 190) if crop else (height < 120), "cropped, the person fills the frame"
    assert (sample.garment_pose[:, 1] > 0).all() and abs(np.ptp(sample.garment_pose[:, 1]) * 256 - 213) < 15


def test_a_flat_garment_is_framed_by_its_mask(real_data):
    photo = cotton(real_data, 3)
    cloth = read_image(real_data / "cotton/cloth/3.jpg")
    mask = read_image(real_data / "cotton/cloth-mask/3.png")[..., 0] >= 128
    loose, tight = (
        make_flat_sample("3", photo, cloth, mask, Preparation((128, 128), crop=crop)) for crop in (False, True)
    )
    shown = [(np.abs(sample.garment.astype(int) - GRAY) > 8).any(-1) for sample in (loose, tight)]
    assert shown[1].sum() > 1.8 * shown[0].sum()
    edge = np.ones((128, 128), bool)
    edge[2:-2, 2:-2] = False
    assert not (shown[1] & edge).any(), "it is whole"
    assert not tight.garment_pose.any() and (tight.person_pose != 0).any()


def ready(person=(400, 300), agnostic=(400, 300), garment=(200, 200), garment_pose=True, crop=False):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in (person, agnostic, garment)]
    pose = np.float32(np.column_stack([rng.uniform(120, 180, (18, 2)), np.ones(18)]))
    poses = (pose, pose if garment_pose else None)
    return images, poses, make_ready_sample("r", *images, *poses, Preparation((64, 64), crop=crop))


def test_ready_images_are_only_framed():
    images, (pose, _), sample = ready()
    assert (sample.person == fit(images[0], (64, 64))).all()
    assert (sample.clothing_agnostic == fit(images[1], (64, 64))).all()
    assert (sample.garment == fit(images[2], (64, 64))).all()
    np.testing.assert_allclose(sample.garment_pose[:, :2], pose[:, :2] / 200, atol=1e-6)
    np.testing.assert_allclose(sample.person_pose[:, 1], pose[:, 1] / 400, atol=1e-6)
    assert not ready(garment_pose=False)[2].garment_pose.any()


def test_ready_images_are_cropped_by_their_poses():
    images, (pose, _), sample = ready(crop=True)
    box = person_box((400, 300), pose, None, (64, 64))
    assert (sample.person == fit(images[0][box], (64, 64))).all() and box[0].stop - box[0].start < 120
    assert (sample.clothing_agnostic == fit(images[1][box], (64, 64))).all()
    assert np.ptp(sample.person_pose[:, 0]) > 0.5 and np.ptp(sample.garment_pose[:, 0]) > 0.5
    images, _, flat = ready(garment_pose=False, crop=True)
    assert (flat.garment == fit(images[2], (64, 64))).all() and not flat.garment_pose.any()


def test_a_ready_agnostic_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"sample 'r': the clothing-agnostic image has 200x150 pixels, but.* 400x300"):
        ready(agnostic=(200, 150))
