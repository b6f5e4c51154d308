-- Whether a controller may still move messages. The lease is another's only where it is in this
-- very Redis; elsewhere the highest fencing number that has been at work here tells.
local FENCE_MILLISECONDS = 60000
local function is_permitted(lease, token, fence, number)
  local holder = redis.call('GET', lease)
  if holder and holder ~= token then
    return false
  end
  local highest = tonumber(redis.call('GET', fence) or '0') or 0
  if tonumber(number) < highest then
    return false
  end
  redis.call('SET', fence, number, 'PX', FENCE_MILLISECONDS)
  return true
end
